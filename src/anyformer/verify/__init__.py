"""Whether a model equals another implementation: Hugging Face's transformers, llama.cpp."""
