"""Grade files of completions from anywhere, without a recipe and without Ray."""
