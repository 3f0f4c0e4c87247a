"""The model in training: engine, loss, output head, adapters, experts, CPU kernels, sequence parallelism."""
