"""Several submissions of one run: one is at work, the others attach to it.

- `owner`: the record of the process at work, its heartbeat, and the outcome of the last one.
- `retries`: stop a job at a mistake of the user, where its scheduler retries every failure.
- `turn`: take the lock of a run directory; until it is free, show the progress of its owner.
"""
