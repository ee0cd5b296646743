"""A run: assembling its parts, the training loop, validation, checkpoints, logs."""
