"""The model in training.

Engine, loss and output head; adapters, experts, CPU kernels, sequence parallelism.
"""
