"""Planner of a training: memory, time and money by formula, before anything starts.

- `models.architecture` counts parameters and floating-point operations from a config.json.
- `work` counts steps, tokens and operations of a training.
- `memory` counts bytes of each GPU.
- `hours` turns operations and exchanged bytes into time.
- `states` turns resume states into bytes and seconds.
- `clusters` finds the clusters large enough for the training, with hours and money.
- `tables` formats the plan.

Loads neither torch nor transformers. Tests compare every formula with the real models.
"""
