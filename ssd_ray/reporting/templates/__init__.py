"""Templates of the pages, and the Jinja environment that fills them."""
