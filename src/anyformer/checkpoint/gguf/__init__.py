"""GGUF files, the format of llama.cpp.

container         header, metadata and tensors, validated
tensors           a tensor as floats, or as integers with scales
contents          metadata and shapes of a file, special tokens and scaled rotary positions in them
architectures     models as metadata and names of tensors, for each architecture
tokenizer_reader  metadata as a tokenizer
tokenizer_writer  a tokenizer as metadata
source            a file as a source of tensors
write             a model, or an adapter of one, as a file
"""
