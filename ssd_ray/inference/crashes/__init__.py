"""Crashes of engines: heartbeats, which prompts are suspected, lost nodes, processes left behind."""
