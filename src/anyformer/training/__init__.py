"""Training from scratch: from a preset and some text to a run directory with a model in it.

config         TrainConfig: everything that a run needs to know, and its YAML file
prepare        text -> tokenizer -> token files, and the model's config to match
optimizer      AdamW, decay on matrices only
schedule       how far a run is, and its learning rate there
loop           the training loop
evaluate       the loss over a validation text
precision      float32 or bfloat16
allocator      memory that is freed is kept for the next step
interrupt      Ctrl-C between two steps
run_directory  what a run leaves behind
progress       what a run shows
sample         what the model has learnt, in its own words
run            all of it in order

Only what works with tensors imports torch, so reading this package's config costs nothing.
"""
