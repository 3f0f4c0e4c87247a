"""Inference: one vLLM engine under sampling and generation, carried by Ray Data."""
