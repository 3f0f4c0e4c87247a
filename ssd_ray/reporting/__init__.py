"""Reporting: one page and one file of numbers from the artifacts of a run.

The data flow: rows -> `counts` -> `tables` -> `Scores`, which is scores.json -> `plots`,
`page`, `terminal`, `comparison`. Every number shown is read from scores.json (results) or
timings.json (machine and time): nothing on the page is computed twice.
"""
