"""Compare two finished runs, where their directories are.

    ray job submit --working-dir . -- python jobs/compare.py /mnt/shared/runs/A /mnt/shared/runs/B

Takes the arguments of `ssd-ray compare`. Reads both runs and asks the cluster for nothing.
"""

import sys

from ssd_ray.cli.app import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
