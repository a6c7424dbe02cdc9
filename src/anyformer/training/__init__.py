"""Training from scratch: from a preset and some text to a run directory with a model in it.

config       TrainConfig: everything that a run needs to know (config_file: its YAML file)
resolve      every choice that is left open, and what can't work declined
prepare      text -> tokenizer -> token files, and the model's config to match (batcher: their batches)
run          a run from its config to its directory
trainer      the training loop, between evaluations, checkpoints and samples
strategies   a step, on one process or several
optimizer    AdamW and Muon; schedule: how far a run is, and its learning rate there
precision    device and dtype

Only what works with tensors imports torch, so reading this package's config costs nothing.
"""
