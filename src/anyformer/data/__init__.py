"""From files to batches.

From files to text:

input_files         files, folders and globs: matched, opened, decompressed; `encodings`: which one a file may have
formats/            one module a format: json, csv, tsv and conll, parquet, text
rows                files -> rows with their locations: what corpora, examples, prompts and pairs are views on
materialize         standard input and data sets of the Hugging Face hub, as files; all that rows may come from
corpus              files -> documents, split into training and validation

From files to examples, for fine-tuning:

examples/           what an example is, whatever its columns are called
  tables            rows and texts that a program holds
  columns, parts    what columns are called; the parts of an example in a row, checked (`messages`: conversations)
  labels            what the labels, tags and scores of a whole data set mean
  held_out          examples for validation, duplicates and overlap
  encoded, chat     texts, completions and conversations -> token ids with a loss mask
  classifier_input  texts, pairs and words -> token ids
  datasets          token ids -> batches

From text to token ids:

parallel_encoding   texts -> ids, in several processes (`encoding_worker`)
token_files         a corpus as one memory-mapped stream of ids
pairs               two files, or two fields -> pairs of source and target -> two streams of ids
disk_cache          what was made once and can be used again

From token ids to batches:

batch               the tensors of one training step
batches             batch(step), a pure function of (data, seed, step), of a stream of ids
pair_batches        batch(step) of pairs, for sequence to sequence
objectives          what a window is trained to predict: causal, masked, span_corruption
feistel_shuffle     a random permutation of any size in constant memory
"""
