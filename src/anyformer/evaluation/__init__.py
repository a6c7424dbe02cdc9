"""How good a model is at a task: predictions, metrics with intervals, and lm-eval's suites."""
