"""Run a recipe from prompts to report.

    ray job submit --working-dir . -- python jobs/pipeline.py RECIPE --out /mnt/shared/runs/NAME

Takes what `ssd-ray run` takes. On a cluster the run directory must lie on storage that every node sees: give --out, or set
SSD_RAY_RUNS on the cluster. Submitting the same job again resumes it.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
