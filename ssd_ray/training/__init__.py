"""Training: from samples to examples, and from examples to a fine-tuned model."""
