"""The parts that every transformer is made of.

Each is made from its own small config and can be used without the rest.
"""
