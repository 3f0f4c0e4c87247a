"""Artifacts on disk: directories claimed, filled shard by shard, and sealed.

- `manifests`: claim, make, seal, load; the states of an artifact.
- `shards` and `slices`: rows as Parquet, also of an artifact in progress.
- `identity` and `lineage`: the fingerprint, and the contents of the inputs.
- `ledger` and `audit`: shards of several writers, each row once; records against files.
- `files` and `directory_lock`: atomic writes, one process at a time.
"""
