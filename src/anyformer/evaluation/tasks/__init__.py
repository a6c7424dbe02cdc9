"""The evaluation of each task: what is asked of the model, and which metrics tell how good the answers are."""
