"""Numbers of the report: contents of scores.json and timings.json, computed from artifacts."""
