"""From files to batches.

Everything is read as rows, and batch(step) is a pure function of (data, seed, step)::

    files, folders, globs           input_files -> formats/ (`encodings`) -> rows
    standard input, data sets       materialize -> rows
    training from text              rows -> corpus, pairs -> parallel_encoding -> token_files -> batches, pair_batches
      predicts                      objectives: causal, masked, span_corruption
    fine-tuning                     rows, or examples/tables -> columns, parts -> an Example, with its labels
      as token ids                  encoded, chat, classifier_input -> datasets; some are held_out

`batch` has the tensors of a step, `feistel_shuffle` the order of samples, `disk_cache` what can be used again.
"""
