"""GGUF files, the format of llama.cpp.

container         header, metadata and tensors, validated
tensors           a tensor as floats, or as integers with scales
architecture      the record of an architecture
architectures     those that can be read and written, and models as their metadata
rope_scaling      scaled rotary positions
vocabulary        tokens, their types and roles
tokenizer_reader  metadata as a tokenizer
tokenizer_writer  a tokenizer as metadata
source            a file as a source of tensors
write             a model as a file
adapter           an adapter as a file
"""
