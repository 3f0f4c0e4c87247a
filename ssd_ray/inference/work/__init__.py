"""The work of an engine: the queue of prompts, units of it, the journal of drawn answers, shards."""
