"""GGUF files, the format of llama.cpp.

container  header, metadata and tensors, validated
tensors    a tensor as floats, or as integers with scales
source     a file as a source of tensors
write      a model as a file
tokenizer  a tokenizer as metadata; `vocabulary` has its tokens
"""
