"""Run the command line as `python -m ssd_ray`."""

from ssd_ray.cli.app import main

main()
