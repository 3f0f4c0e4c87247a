"""The pipeline: steps, the graph that connects them, and the run that makes them in a directory."""
