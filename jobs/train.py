"""Fine-tune on the samples of a recipe, after drawing them if they are missing.

    ray job submit --working-dir . -- python jobs/train.py RECIPE --out /mnt/shared/runs/NAME

Takes the arguments of `ssd-ray train`. On a cluster the run directory must be on storage shared by
all nodes: give --out, or set SSD_RAY_RUNS on the cluster. Submitting the same job again resumes it.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
