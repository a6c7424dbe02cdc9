"""Fine-tuning. Nothing is imported here: `config` is for the command line as well, which doesn't wait for torch."""
