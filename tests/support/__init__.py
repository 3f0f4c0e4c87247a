"""Doubles, made-up runs and hostile programs, shared by tests."""
