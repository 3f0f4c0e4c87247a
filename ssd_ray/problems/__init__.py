"""Problems and benchmarks, and their rendering as prompts."""
