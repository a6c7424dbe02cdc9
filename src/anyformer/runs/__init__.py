"""Run directories: what a run writes while it trains, and how runs are listed, compared and shown.

directory    the files of a run
metrics      the lines of metrics.jsonl
tracking     the same lines, to TensorBoard, trackio or Weights & Biases
listing      runs read back, and how they differ
report       pages with their curves
"""
