"""From files to batches.

files        files, folders and globs: found, opened, decompressed
records      the fields of jsonl, csv, tsv and parquet
spool        standard input and data sets of the hub, kept as files
sources      files -> documents
parallel     two files, or two fields -> pairs of texts
split        what is held out for validation
encode       texts -> ids, in processes of its own (worker)
tokens       documents -> a memory-mapped file of token ids
pairs        the same of pairs
cache        what was made once and can be used again
permutation  a shuffle of any size that needs no memory
batch        what a model is trained on in one step
batches      batch(step), a pure function of (data, seed, step), of a stream of tokens
pair_batches the same of pairs of texts, for sequence to sequence
objectives   what a window of tokens is trained to predict: causal, masked, span_corruption
"""
