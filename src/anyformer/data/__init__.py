"""From files to batches.

From files to text:

input_files         files, folders and globs: found, opened, decompressed
records             the fields of jsonl, csv, tsv and parquet
materialize         standard input and data sets of the Hugging Face hub, as files
sources             files -> documents
corpus              documents, split into training and validation

From text to token ids:

parallel_encoding   texts -> ids, in several processes (`encoding_worker`)
token_files         a corpus as one memory-mapped stream of ids
pairs               two files, or two fields -> pairs of source and target -> two streams of ids
disk_cache          what was made once and can be used again

From token ids to batches:

batch               the tensors of one training step
batches             batch(step), a pure function of (data, seed, step), of a stream of ids
pair_batches        the same of pairs, for sequence to sequence
objectives          what a window is trained to predict: causal, masked, span_corruption
feistel_shuffle     a random permutation of any size in constant memory
"""
