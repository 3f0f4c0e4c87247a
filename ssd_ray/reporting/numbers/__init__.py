"""Numbers of the report: what the page and scores.json show, computed from artifacts."""
