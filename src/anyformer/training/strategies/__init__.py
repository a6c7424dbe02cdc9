"""Steps of training on one process, or on several together."""
