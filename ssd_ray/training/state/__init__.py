"""State of a training on disk: checkpoints to resume from, exported weights, logs."""
