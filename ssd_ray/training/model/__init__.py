"""The model in training: engine, loss, adapters, experts, CPU kernels, sequence parallelism."""
