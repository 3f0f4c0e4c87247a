"""Run a recipe from prompts to report.

    ray job submit --working-dir . -- python jobs/pipeline.py RECIPE --out /mnt/shared/runs/NAME

Takes what `ssd-ray run` takes. On a cluster the run directory must lie on shared storage:
give --out, or set SSD_RAY_RUNS on the cluster. The same job, submitted again, resumes.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
