"""GGUF files, the format of llama.cpp.

container         header, metadata and tensors, validated
contents          metadata and shapes of a file, special tokens and scaled rotary positions in them
architecture      a model as metadata and names of tensors
architectures     the architectures, and what differs in each
tokenizer_reader  metadata as a tokenizer
tokenizer_writer  a tokenizer as metadata
source            a file as a source of tensors, each as floats, or as integers with scales
write             a model, or an adapter of one, as a file
"""
