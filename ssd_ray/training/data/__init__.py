"""Training data: samples as sequences, their health, and packed micro-batches."""
