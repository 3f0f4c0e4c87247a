"""The work of engines: the queue, work units, the journal of finished answers, shards."""
