"""The pipeline: steps, their graph, and the run making them in a directory."""
