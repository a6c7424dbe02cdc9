"""From files to batches.

sources      files and folders -> documents; the split into training and validation
tokens       documents -> a memory-mapped file of token ids
permutation  a shuffle of any size that needs no memory
batches      batch(step), a pure function of (data, seed, step)
objectives   what a window of tokens is trained to predict: causal, masked
"""
