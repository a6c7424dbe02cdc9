"""From files to batches.

Everything is read as rows, and batch(step) is a pure function of (data, seed, step)::

    files, folders, globs           input_files -> formats/ -> rows
    standard input, data sets       materialize -> rows
    training from text              rows -> corpus, pairs -> shards -> token_files -> batches
      predicts                      objectives: causal, masked, span corruption
    fine-tuning                     rows, or examples/tables -> columns, parts -> an Example, with its labels
      as token ids                  encoded, chat -> datasets; some are held out

`batch` has the tensors of a step, `disk_cache` what can be used again.
"""
