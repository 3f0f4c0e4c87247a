"""Reporting: one page and one file of numbers from the artifacts of a run."""
