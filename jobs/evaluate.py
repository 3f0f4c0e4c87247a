"""Generate, grade and report every arm of a recipe, training first where the checkpoint is missing.

    ray job submit --working-dir . -- python jobs/evaluate.py RECIPE --out /mnt/shared/runs/NAME

Takes what `ssd-ray report` takes. On a cluster the run directory must lie on shared storage:
give --out, or set SSD_RAY_RUNS on the cluster. The same job, submitted again, resumes.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
