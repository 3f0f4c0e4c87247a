"""Doubles, made-up runs and hostile programs that several tests share."""
