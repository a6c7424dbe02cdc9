"""The parts that every transformer is made of.

Each stands alone: made from its own small config, usable without the rest.
"""
