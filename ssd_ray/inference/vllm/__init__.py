"""vLLM behind a small interface: engine, arguments, exact sampler, and placement."""
