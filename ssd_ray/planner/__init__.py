"""The planner: what training a model costs in memory, time and money, by formula, before anything starts.

`architecture` counts parameters and floating-point operations from a config.json, `memory` bytes for each GPU, `clusters` which
cluster fits and how long it takes. Loads neither torch nor transformers; tests hold every formula against the real models.
"""
