"""Crashes of engines: heartbeats, attribution to prompts, lost nodes, leftover processes."""
