"""Observation of a training: held-out measurements, trackers, heartbeat."""
