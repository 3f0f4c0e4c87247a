"""Facts about this machine: GPUs, driver, host, storage, tools, access to the hub.

- `gpus`, `host`, `storage` and `installed` read facts. They start no engine and no Ray.
- `findings` compares facts with the needs of a run; pure functions.

`ssd-ray doctor` prints all of it, and a run refuses what cannot work (`pipeline/preflight.py`).
Loads neither torch nor Ray.
"""
