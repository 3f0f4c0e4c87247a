"""The model in training: engine, loss, LoRA adapters, experts, CPU kernels, sequence parallelism."""
