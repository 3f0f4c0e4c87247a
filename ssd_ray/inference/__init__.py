"""Inference: answers of vLLM engines for sampling and generation, in pools run by Ray Data."""
