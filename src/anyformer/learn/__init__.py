"""Learning how a model works: its architecture as one readable file."""
