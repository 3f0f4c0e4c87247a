"""Fine-tune on the samples of a recipe, drawing them first where they are missing.

    ray job submit --working-dir . -- python jobs/train.py RECIPE --out /mnt/shared/runs/NAME

Takes what `ssd-ray train` takes. On a cluster the run directory must lie on shared storage:
give --out, or set SSD_RAY_RUNS on the cluster. The same job, submitted again, resumes.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
