"""Run a recipe from prompts to report.

    ray job submit --working-dir . -- python jobs/pipeline.py RECIPE --out /mnt/shared/runs/NAME

Takes the arguments of `ssd-ray run`. On a cluster the run directory must be on storage shared by
all nodes: give --out, or set SSD_RAY_RUNS on the cluster. Submitting the same job again resumes it.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
