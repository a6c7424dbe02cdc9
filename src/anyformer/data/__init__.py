"""From files to batches.

From files to text:

input_files         files, folders and globs: found, opened, decompressed
formats/            one module a format: json, csv and tsv, parquet, conll, text
rows                files -> rows with their places: what corpora, examples, prompts and pairs are views on
records             the fields of rows that hold text
materialize         standard input and data sets of the Hugging Face hub, as files
sources             files -> documents
corpus              documents, split into training and validation

From files to examples, for fine-tuning:

examples/           what an example is, whatever its columns are called
  rows              files, data sets of the hub and standard input -> rows
  columns           what columns are called, and which of them make up an example
  tasks             which task the columns are for
  parts             the parts of an example in a row, checked
  convert           rows -> examples (`messages`: conversations; `preferences`, `unpaired`: pairs of answers)
  labels            what the labels, tags and scores of a whole data set mean
  loading           all of it: files -> a set of examples, and a sentence on what was found
  held_out          examples for validation, duplicates and overlap
  encoded           examples as token ids, with those that are learned
  chat, completion  conversations, texts and completions -> token ids

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
