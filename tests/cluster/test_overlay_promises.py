"""The promises of k8s/: groups and roles, sizes by the planner, eviction, grace."""

from __future__ import annotations

import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.config import ClusterConfig
from ssd_ray.machine import storage
from ssd_ray.planner.clusters import GIB, host_bytes
from ssd_ray.roles import LABEL, Role
from tests.support.planner_cases import plan_of
from tests.support.rendered import (
    OVERLAYS,
    RECIPES,
    Yaml,
    cluster_specs,
    environment,
    group,
    groups,
    of_kind,
    ray_types,
    render,
    templates,
)

ROLES = {
    "sampler-spot": Role.SAMPLER,
    "sampler": Role.SAMPLER,
    "trainer": Role.TRAINER,
    "grader": Role.GRADER,
}
ROLE = LABEL
SPOT = [
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
]


@pytest.fixture(params=[f"overlays/{name}" for name in OVERLAYS])
def root(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spec(root: str) -> Yaml:
    (spec,) = cluster_specs(render(root))
    return spec


def gib(quantity: str) -> float:
    assert quantity.endswith("Gi"), quantity
    return float(quantity[:-2])


def test_every_group_has_the_label_of_its_role(spec: Yaml) -> None:
    """Ray's autoscaler reads labels of groups without a node from the groups alone."""
    assert {name: each["labels"][ROLE] for name, each in groups(spec).items()} == ROLES
    assert spec["headGroupSpec"]["labels"] == {ROLE: "driver"}
    types = ray_types(spec)
    assert {name: types[name]["labels"][ROLE] for name in ROLES} == ROLES
    assert types["headgroup"]["labels"] == {ROLE: "driver"}
    for name, each in groups(spec).items():
        assert each["template"]["metadata"]["labels"][ROLE] == ROLES[name], "for the policies"


def test_a_cluster_is_ready_without_any_worker(spec: Yaml) -> None:
    for each in groups(spec).values():
        assert (each["replicas"], each["minReplicas"]) == (0, 0)
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"


def test_spot_is_asked_for_first_and_on_demand_is_the_fallback(root: str, spec: Yaml) -> None:
    types = ray_types(spec)
    assert types["sampler-spot"]["priority"] == 10
    assert types["sampler"]["priority"] == 0
    assert types["sampler"]["resources"] == types["sampler-spot"]["resources"]
    assert (types["sampler"]["max_workers"] == 0) == (root == "overlays/spot-only")
    assert groups(spec)["sampler-spot"]["labels"]["ray.io/market-type"] == "spot"


def test_spot_nodes_of_four_clouds_are_chosen_or_avoided(spec: Yaml) -> None:
    def terms(template: Yaml) -> list[Yaml]:
        affinity = template["spec"]["affinity"]["nodeAffinity"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        return list(required["nodeSelectorTerms"])

    chosen = terms(groups(spec)["sampler-spot"]["template"])
    assert [term["matchExpressions"] for term in chosen] == [
        [{"key": key, "operator": "In", "values": [value]}] for key, value in SPOT
    ]
    tolerations = groups(spec)["sampler-spot"]["template"]["spec"]["tolerations"]
    # EKS taints none of its own spot nodes.
    assert {each["key"] for each in tolerations} == {"nvidia.com/gpu", *dict(SPOT)} - {SPOT[1][0]}
    on_demand = [groups(spec)[name]["template"] for name in ("sampler", "trainer")]
    for template in [spec["headGroupSpec"]["template"], *on_demand]:
        (term,) = terms(template)
        assert term["matchExpressions"] == [
            {"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT
        ]


def test_the_head_takes_no_work(spec: Yaml) -> None:
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert ray_types(spec)["headgroup"]["resources"]["CPU"] == 0
    assert spec["rayVersion"] == version("ray")


def test_head_and_trainer_are_not_evicted(root: str, spec: Yaml) -> None:
    objects = render(root)
    stays = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    budgets = {
        each["spec"]["selector"]["matchLabels"][ROLE]: each["spec"]["maxUnavailable"]
        for each in of_kind(objects, "PodDisruptionBudget")
    }
    assert budgets == {"driver": 0, "trainer": 0}
    for template in (spec["headGroupSpec"]["template"], groups(spec)["trainer"]["template"]):
        assert template["metadata"]["annotations"] == stays
        assert template["spec"]["priorityClassName"]


@pytest.mark.parametrize(
    ("root", "name"), [(root, name) for root, names in RECIPES.items() for name in names]
)
def test_groups_hold_the_recipes_of_their_overlay(root: str, name: str) -> None:
    """The gang fits, memory holds the planner's figures, engines fit samplers."""
    recipe = recipes.load(name, ())
    types = ray_types(cluster_specs(render(root))[0])
    trainer, sampler = types["trainer"], types["sampler-spot"]
    workers = recipe.cluster.train_workers
    on_gpus = recipe.cluster.device == "cuda"
    unit = "GPU" if on_gpus else "CPU"
    per_worker = 1 if on_gpus else recipe.cluster.cpus_per_train_worker
    pods_needed = -(-workers * per_worker // trainer["resources"][unit])
    assert pods_needed <= trainer["max_workers"]
    if on_gpus:
        assert trainer["resources"]["GPU"] == 8
        assert sampler["resources"]["GPU"] % recipe.engine.tensor_parallel_size == 0
        # A core for each engine; training workers have theirs on the trainer.
        assert sampler["resources"]["CPU"] >= 1
    else:
        assert sampler["resources"]["CPU"] >= recipe.engine.cpus

    plan = plan_of(name)
    per_pod = min(workers, 8)
    spec = group(root, "trainer")["template"]["spec"]
    memory = gib(spec["containers"][0]["resources"]["limits"]["memory"])
    shm = next(
        gib(each["emptyDir"]["sizeLimit"]) for each in spec["volumes"] if each["name"] == "shm"
    )
    needed = host_bytes(plan.requested.memory, per_pod) / GIB
    # Python, torch and CUDA's host side of a process take about 6 GiB on a GPU, 2 on a CPU.
    processes = per_pod * (6 if on_gpus else 2)
    assert needed + processes + shm <= memory


def test_weights_fit_the_samplers_host(root: str) -> None:
    """vLLM reads weights through host memory, at most all of them at once."""
    for name in RECIPES[root]:
        weights = 2 * plan_of(name).model.parameters / GIB
        limits = group(root, "sampler")["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert weights < gib(limits["memory"]) / 2


def test_weights_fit_the_disk_that_their_node_names(root: str) -> None:
    """Next to the caches of compiled kernels, a fifth of it."""
    for name in ("sampler-spot", "sampler", "trainer"):
        spec = group(root, name)["template"]["spec"]
        place = environment(spec["containers"][0])[storage.LOCAL]
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == place]
        (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
        for recipe in RECIPES[root]:
            weights = 2 * plan_of(recipe).model.parameters / GIB
            assert weights < 0.8 * gib(volume["emptyDir"]["sizeLimit"]), (name, recipe)


def test_runs_and_caches_are_on_the_shared_volume(root: str) -> None:
    objects = render(root)
    (claim,) = of_kind(objects, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in templates(objects):
        values = environment(template["spec"]["containers"][0])
        assert values["SSD_RAY_RUNS"] == "/mnt/shared/runs", name
        assert values["RAY_USAGE_STATS_ENABLED"] == "0"
        assert values["RAY_worker_niceness"] == "0", "a raylet reads its own environment"
        for cache in {"SSD_RAY_CACHE", "HF_HOME"} & values.keys():
            own = name == "grader"  # which sees no cache of others
            assert values[cache].startswith("/tmp/" if own else "/mnt/shared/")
        context = template["spec"]["securityContext"]
        assert context["fsGroupChangePolicy"] == "OnRootMismatch"


def test_pods_have_more_grace_than_their_drain(root: str) -> None:
    for name, template in templates(render(root)):
        values = environment(template["spec"]["containers"][0])
        drain_s = int(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s + 10 <= template["spec"]["terminationGracePeriodSeconds"], name
        if name == "head":
            assert ClusterConfig().notice_s < int(values["RAY_JOB_STOP_WAIT_TIME_S"]) <= drain_s


def test_ray_asks_for_a_token(spec: Yaml) -> None:
    assert spec["authOptions"] == {"mode": "token"}


def test_the_autoscaler_starts_again_and_ends_on_sigterm(spec: Yaml, tmp_path: Path) -> None:
    """Nothing else would start it again, and the first process has to pass SIGTERM on."""
    program = tmp_path / "ray"
    program.write_text(
        '#!/bin/bash\necho "$@" >>starts\ntest $(wc -l <starts) -lt 2 || exec sleep 600\nexit 1\n'
    )
    program.chmod(0o755)
    (words,) = spec["autoscalerOptions"]["args"]
    for name in ("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE"):
        words = words.replace(f"$({name})", name.lower())
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = ["/bin/bash", "-c", "--", words.replace("sleep 5", "sleep 0.1")]
    process = subprocess.Popen(command, cwd=tmp_path, env={"PATH": path}, start_new_session=True)
    starts = tmp_path / "starts"
    deadline = time.monotonic() + 30
    while not starts.exists() or len(starts.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.terminate()
    assert process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert set(starts.read_text().splitlines()) == {
        "kuberay-autoscaler --cluster-name ray_cluster_name "
        "--cluster-namespace ray_cluster_namespace"
    }
