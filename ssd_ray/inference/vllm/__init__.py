"""vLLM behind a small interface: the engine, its arguments, the exact sampler, and placement."""
