"""RayJobs of k8s/ and what components add: scripts, deadlines, the driver's place, queues."""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.roles import LABEL
from ssd_ray.submissions.retries import RETRIED_BY
from tests.support.rendered import (
    JOBS,
    RECIPES,
    TOP,
    of_kind,
    ray_types,
    render,
)

ROLE = LABEL


def test_with_gcs_ft_the_driver_is_off_the_head() -> None:
    objects = render("overlays/30b", ("gcs-ft",), is_job=True)
    (job,) = of_kind(objects, "RayJob")
    assert job["spec"]["entrypointResources"] == '{"ssd-ray-driver": 1}'
    types = ray_types(job["spec"]["rayClusterSpec"])
    offers = {name for name, each in types.items() if each["resources"].get("ssd-ray-driver")}
    assert offers == {"driver"}
    assert types["driver"]["labels"][ROLE] == "driver"
    assert types["driver"]["resources"]["CPU"] == 0
    options = job["spec"]["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert "secretKeyRef" in options["redisPassword"]["valueFrom"]
    (redis,) = of_kind(objects, "StatefulSet")
    arguments = redis["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--requirepass", "--appendonly"} <= set(arguments)
    assert redis["spec"]["volumeClaimTemplates"]


def test_kueue_suspends_the_jobs() -> None:
    (job,) = of_kind(render("overlays/30b", ("kueue",), is_job=True), "RayJob")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "ssd-ray"}


@pytest.mark.parametrize("root", JOBS)
def test_a_job_runs_a_script_and_a_recipe_that_exist(root: str) -> None:
    (job,) = of_kind(render(root), "RayJob")
    python, script, recipe, *_ = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    assert (TOP / script).is_file()
    assert script == f"jobs/{Path(root).name}.py"
    assert recipe in RECIPES[f"overlays/{Path(root).parts[1]}"]
    assert recipes.load(recipe, ()).name == recipe
    assert job["metadata"]["name"].endswith(Path(root).name)


@pytest.mark.parametrize("root", JOBS)
def test_a_job_knows_that_it_is_retried(root: str) -> None:
    """So it stops itself at a mistake of the user, and the mistake costs one cluster."""
    (job,) = of_kind(render(root), "RayJob")
    assert job["spec"]["metadata"] == {RETRIED_BY: "kuberay"}


@pytest.mark.parametrize("root", JOBS)
def test_a_job_has_deadlines_and_gives_its_pods_back(root: str) -> None:
    (job,) = of_kind(render(root), "RayJob")
    spec = job["spec"]
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 3600, "the head, for its logs"
    idle = [each["idleTimeoutSeconds"] for each in spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert max(idle) <= 300, "workers"


def test_commands_of_plain_jobs_exist() -> None:
    for name in ("model-cache", "grader-apart"):
        for job in of_kind(render("overlays/30b", (name,)), "Job"):
            (container,) = job["spec"]["template"]["spec"]["containers"]
            scripts = Path(sysconfig.get_path("scripts"))
            assert (scripts / container["command"][0]).exists(), container["command"]
