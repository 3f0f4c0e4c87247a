"""Artifacts on disk: directories that are claimed, filled shard by shard, and sealed.

- `manifests`: claim, make, seal, load; the states of an artifact.
- `shards` and `slices`: its rows as Parquet, and rows of an artifact that still grows.
- `identity` and `lineage`: the fingerprint, and the contents that it was made from.
- `ledger`: shards that several writers fill, each row once.
- `files` and `directory_lock`: atomic writes, one process at a time.
"""
