"""Draw the samples of a recipe, after rendering its prompts.

    ray job submit --working-dir . -- python jobs/sample.py RECIPE --out /mnt/shared/runs/NAME

Takes the arguments of `ssd-ray sample`. On a cluster the run directory must be on storage shared by
all nodes: give --out, or set SSD_RAY_RUNS on the cluster. Submitting the same job again resumes it.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
