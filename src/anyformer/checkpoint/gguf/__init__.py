"""GGUF files, the format of llama.cpp.

container  header, metadata and tensors, validated
types      the formats of weights
tensors    a tensor as floats, or as integers with scales
"""
