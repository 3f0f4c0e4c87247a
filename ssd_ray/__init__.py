"""Simple self-distillation of language models."""
