"""GGUF files, the format of llama.cpp.

container         header, metadata and tensors, validated
tensors           a tensor as floats, or as integers with scales
architecture      the record of an architecture, and scaled rotary positions
architectures     those that can be read and written, and models as their metadata
vocabulary        tokens, their types and roles
tokenizer_reader  metadata as a tokenizer
tokenizer_writer  a tokenizer as metadata
source            a file as a source of tensors
write             a model, or an adapter of one, as a file
"""
