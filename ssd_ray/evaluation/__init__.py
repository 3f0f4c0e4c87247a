"""Evaluation: code out of answers, run outside of this process, compared, counted, with intervals."""
