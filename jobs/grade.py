"""Grade the answers of a recipe's arms, after everything that is missing up to them.

    ray job submit --working-dir . -- python jobs/grade.py RECIPE --out /mnt/shared/runs/NAME

Takes the arguments of `ssd-ray grade`. On a cluster the run directory must be on storage shared by
all nodes: give --out, or set SSD_RAY_RUNS on the cluster. Submitting the same job again resumes it.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["grade", *sys.argv[1:]])
