"""Training from scratch: from a preset and some text to a run directory with a model in it.

config       settings (config_file: as YAML)
prepare      text -> tokenizer -> token files -> batcher
run          a run from its config to its directory, by its recipe
trainer      the training loop, between evaluations, checkpoints and samples
strategies   a step, on one process or several

Only modules that compute with tensors import torch, so reading this package's config costs nothing.
"""
