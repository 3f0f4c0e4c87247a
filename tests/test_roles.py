"""Every process goes to nodes of its role, where nodes carry roles."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ssd_ray import config, roles
from ssd_ray.cluster import growth, room
from ssd_ray.cluster.groups import kuberay_groups
from ssd_ray.cluster.growth import Group, Growth
from ssd_ray.config import ClusterConfig, EngineConfig, RolesChoice, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.inference.vllm.placement import engine_resources
from ssd_ray.pipeline.cluster_room import Work, check_cluster
from ssd_ray.recipes import load
from ssd_ray.roles import LABEL, SAMPLER, TRAINER
from tests.prose import nodes as nodes_of
from tests.support.rendered import cluster_specs, group, render

PACKAGE = Path(__file__).parents[1] / "ssd_ray"
PLACES = {
    "ScalingConfig": "label_selector",
    "map_batches": "label_selector",
    "options": "label_selector",
    "placement_group": "bundle_label_selector",
    "remote": "label_selector",
}
"""Calls that start processes elsewhere, with the argument that holds the selector."""
WORKERS = ("MapWorker", "GraderActor", "RayTrainWorker")


def node(role: str = "", **resources: float) -> dict[str, Any]:
    labels = {"ray.io/node-id": "x"} | ({LABEL: role} if role else {})
    return {"NodeID": role, "Alive": True, "Labels": labels, "Resources": resources}


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list of the nodes of Ray, to be filled; this process runs on the first."""
    nodes: list[dict[str, Any]] = []
    dead = {**node("driver", CPU=64, GPU=8), "Alive": False}
    context = SimpleNamespace(get_node_id=lambda: nodes[0]["NodeID"], gcs_address="")
    monkeypatch.setattr(ray, "nodes", lambda: [dead, *nodes])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    return nodes


def test_without_labels_nothing_gets_a_selector(live: list[dict[str, Any]]) -> None:
    live.append(node(CPU=8, GPU=1))
    for choice in ("auto", "off"):
        assert roles.selector(SAMPLER, choice) is None  # type: ignore[arg-type]
    roles.check_driver("auto")


def test_the_label_of_the_head_puts_roles_in_effect(live: list[dict[str, Any]]) -> None:
    """Groups of an autoscaler may have no node yet."""
    live.append(node("driver"))
    assert roles.selector(TRAINER, "auto") == {"ssd-ray/role": "trainer"}
    assert roles.selector(TRAINER, "required") == {"ssd-ray/role": "trainer"}
    assert roles.selector(TRAINER, "off") is None


def test_a_cluster_without_labels_is_refused_if_required(live: list[dict[str, Any]]) -> None:
    live.append(node(CPU=8))
    with pytest.raises(UserError) as refusal:
        roles.check_driver("required")
    assert str(refusal.value) == (
        "cluster.roles is 'required', and no node of Ray has the label ssd-ray/role: start the "
        "head with `ray start --head --labels=ssd-ray/role=driver`, or set cluster.roles=auto"
    )


@pytest.mark.parametrize(
    ("role", "has"), [("sampler", "the role sampler"), ("", "no label ssd-ray/role")]
)
def test_a_driver_on_a_spot_node_is_refused(
    live: list[dict[str, Any]], role: str, has: str
) -> None:
    live.extend([node(role, CPU=8), node("driver")])
    with pytest.raises(UserError, match=f"runs on a node with {has}, .*submit the job with"):
        roles.check_driver("auto")
    roles.check_driver("off")
    live.reverse()
    roles.check_driver("auto")


def test_the_choice_changes_no_fingerprint() -> None:
    chosen = load("quickstart", ["cluster.roles=required"])
    assert config.choices(chosen) == config.choices(load("quickstart"))


def test_each_role_reserves_what_its_processes_need(live: list[dict[str, Any]]) -> None:
    live.append(node(CPU=8))
    cuda, cpu = ClusterConfig(), ClusterConfig(device="cpu", cpus_per_train_worker=3)
    assert roles.engine_bundle(EngineConfig(cpus=5), "cpu") == {"CPU": 5}
    assert roles.engine_bundle(EngineConfig(cpus=5), "cuda") == {"CPU": 1, "GPU": 1}
    assert roles.worker_bundle(cuda, 11) == {"CPU": 11, "GPU": 1}
    assert roles.worker_bundle(cpu) == {"CPU": 3}
    nothing = ClusterConfig(grader_cpus=0)
    assert roles.grader_bundle(nothing) == {"CPU": 0}
    live.append(node("grader", CPU=8))
    assert roles.grader_bundle(nothing) == {"CPU": 1}


def test_graders_leave_the_core_of_each_gpu(live: list[dict[str, Any]], tmp_path: Path) -> None:
    """An engine or training worker reserves one core with its GPU."""
    live.append(node(CPU=12, GPU=8))
    assert RayBackend(ClusterConfig(), tmp_path).size() == 4
    live.extend([node("driver", CPU=8), node("grader", CPU=6), node("sampler", CPU=8, GPU=1)])
    assert RayBackend(ClusterConfig(), tmp_path).size() == 6
    assert RayBackend(ClusterConfig(grader_cpus=2), tmp_path).size() == 3


def _need(choice: RolesChoice = "auto") -> room.Need:
    cluster = ClusterConfig(device="cpu", train_workers=4, roles=choice)
    return room.training_need(TrainConfig(global_batch_size=8), cluster)


@pytest.fixture
def grows(monkeypatch: pytest.MonkeyPatch) -> list[Growth]:
    """Return a list of one growth, to be replaced; no time passes."""
    growth_of_cluster = [Growth(has_autoscaler=False)]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(room, "read_growth", lambda: growth_of_cluster[0])
    monkeypatch.setattr(growth, "own_cluster", lambda: None)
    monkeypatch.setattr(room, "JOIN_S", 0)
    return growth_of_cluster


def test_only_nodes_of_the_role_have_room(live: list[dict[str, Any]], grows: list[Growth]) -> None:
    live.extend([node("driver"), node("sampler", CPU=64), node("trainer", CPU=3)])
    with pytest.raises(UserError) as refusal:
        room.check_room(_need(), print, lambda most: f"take {most}")
    assert str(refusal.value).endswith(
        "the cluster at RAY_ADDRESS holds 3 on nodes with the label ssd-ray/role=trainer and has "
        "no autoscaler: take 3"
    )
    room.check_room(_need("off"), print, lambda most: f"take {most}")
    live.append(node("trainer", CPU=1))
    room.check_room(_need(), print, lambda most: f"take {most}")


def test_a_role_without_nodes_is_refused_by_its_label(
    live: list[dict[str, Any]], grows: list[Growth]
) -> None:
    live.extend([node("driver"), node("sampler", CPU=64)])
    remedy = "start nodes with `--labels=ssd-ray/role=trainer`, or set cluster.roles=off"
    with pytest.raises(UserError, match=remedy):
        room.check_room(_need(), print, lambda _: "other")
    group = Group(resources={"CPU": 4}, most=2, labels={LABEL: "sampler"})
    grows[0] = Growth(has_autoscaler=True, groups=(group,))
    with pytest.raises(UserError, match=remedy):
        room.check_room(_need(), print, lambda _: "other")


def test_a_group_at_zero_replicas_is_waited_for(
    live: list[dict[str, Any]], grows: list[Growth]
) -> None:
    live.append(node("driver"))
    lines: list[str] = []
    for labels in ({LABEL: "trainer"}, None):
        group = Group(resources={"CPU": 4}, most=2, labels=labels)
        grows[0] = Growth(has_autoscaler=True, groups=(group,))
        room.check_room(_need(), lines.append, lambda _: "other")
    grows[0] = Growth(has_autoscaler=True)
    room.check_room(_need(), lines.append, lambda _: "other")
    assert [line.rpartition(": ")[2] for line in lines] == [
        "waiting for the cluster to grow, it holds 0 now"
    ] * 3


def test_the_file_of_the_launcher_states_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "head_node_type: head\n"
        "available_node_types:\n"
        "  head: {resources: {CPU: 0}}\n"
        "  one: {resources: {CPU: 4}, max_workers: 2, labels: {ssd-ray/role: trainer}}\n"
    )
    head, one = growth._configured(path).groups
    assert head.may_have({LABEL: "trainer"})
    assert one.may_have({LABEL: "trainer"})
    assert one.may_have(None)
    assert not one.may_have({LABEL: "grader"})


def test_a_run_that_grades_needs_a_grader_node(
    live: list[dict[str, Any]], grows: list[Growth]
) -> None:
    live.extend([node("driver"), node("sampler", CPU=64)])
    recipe = load("quickstart")
    with pytest.raises(UserError, match=r"a grader needs 1 worker of 1 core .*role=grader"):
        check_cluster(recipe, Work(grades=True), print)
    check_cluster(recipe, Work(), print)
    del live[0]["Labels"], live[1]["Labels"]
    check_cluster(recipe, Work(grades=True), print)


def test_graders_grow_with_their_group(
    live: list[dict[str, Any]],
    grows: list[Growth],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From 0 nodes to the largest size of their group, and of no other."""
    (spec,) = cluster_specs(render("overlays/30b"))
    grader = group("overlays/30b", "grader")
    most = grader["maxReplicas"] * int(
        grader["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    )
    grows[0] = Growth(has_autoscaler=True, groups=kuberay_groups(spec))
    live.append(node("driver"))
    assert most > 8
    assert RayBackend(ClusterConfig(), tmp_path).size() == most
    assert RayBackend(ClusterConfig(grader_cpus=4), tmp_path).size() == most // 4
    assert RayBackend(ClusterConfig(max_graders=5), tmp_path).size() == 5
    live.append(node("grader", CPU=8))
    assert RayBackend(ClusterConfig(), tmp_path).size() == most
    monkeypatch.delenv("RAY_ADDRESS")
    assert RayBackend(ClusterConfig(), tmp_path).size() == 8, "a local Ray never grows"


def test_graders_of_an_unknown_group_grow_step_by_step(
    live: list[dict[str, Any]], grows: list[Growth], tmp_path: Path
) -> None:
    grows[0] = Growth(has_autoscaler=True)
    live.append(node("driver"))
    sizes = []
    for number in range(3):
        sizes.append(RayBackend(ClusterConfig(), tmp_path).size())
        live.append({**node("grader", CPU=8), "NodeID": f"grader-{number}"})
    assert sizes == [1, 16, 32]
    for each in live:
        each["Labels"] = {}
    assert RayBackend(ClusterConfig(), tmp_path).size() == 24, "without roles the present cores"


def test_elastic_training_counts_nodes_of_trainers_alone(live: list[dict[str, Any]]) -> None:
    """Ray counts the workers that fit on any node, whatever the selector."""
    from ray.train import ScalingConfig

    from ssd_ray.training.worker_group import SizedPolicy

    live.extend([node("driver"), node("grader", CPU=8), node("trainer", CPU=3)])
    anywhere = {"grader": {"CPU": 8.0}}
    policies = [
        SizedPolicy(
            ScalingConfig(
                num_workers=(1, 4),
                resources_per_worker={"CPU": 1},
                label_selector=roles.selector(TRAINER, choice),
            ),
            [1, 2, 4],
        )
        for choice in ("auto", "off")
    ]
    assert [policy._count_possible_workers(anywhere) for policy in policies] == [2, 4]


def test_a_parallel_engine_has_a_selector_for_each_bundle(
    live: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.util, "placement_group", lambda *_, **options: asked.append(options))
    groups = engine_resources(EngineConfig(tensor_parallel_size=2), "cuda").groups
    assert groups is not None
    live.append(node(CPU=8, GPU=8))
    groups()
    live.append(node("driver"))
    groups()
    # The node of 8 GPUs has no role, so it counts no more.
    assert [options["strategy"] for options in asked] == ["STRICT_PACK", "PACK"]
    assert [options["bundle_label_selector"] for options in asked] == [
        None,
        [{LABEL: "sampler"}, {LABEL: "sampler"}],
    ]


def _name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        # `actor.method.remote()` goes where its actor is.
        is_method = function.attr == "remote" and ast.unparse(function.value) != "ray"
        return "" if is_method else function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _names_node(call: ast.Call) -> bool:
    """Return True for a start on one node by its id, which asks for no other."""
    strategies = [each.value for each in call.keywords if each.arg == "scheduling_strategy"]
    return any(
        "NodeAffinity" in (text := ast.unparse(value)) and "soft=False" in text
        for value in strategies
    )


def _has_role(call: ast.Call) -> bool:
    if _names_node(call):
        return True
    selectors = [each.value for each in call.keywords if each.arg == PLACES[_name(call)]]
    return any("roles." in ast.unparse(value) for value in selectors)


def _starts_of(source: str) -> list[ast.Call]:
    calls = [each for each in nodes_of(source) if isinstance(each, ast.Call)]
    # `ray.remote(Class).options(...)` is one start.
    chained = [
        each.func.value
        for each in calls
        if isinstance(each.func, ast.Attribute) and each.func.attr == "options"
    ]
    return [each for each in calls if _name(each) in PLACES and each not in chained]


def test_nothing_starts_without_a_role() -> None:
    starts = 0
    uses_ray = re.compile(r"^\s*(import|from) ray\b", re.MULTILINE)
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        for call in _starts_of(source) if uses_ray.search(source) else ():
            starts += 1
            assert _has_role(call), f"{path}:{call.lineno} has no role: see ssd_ray/roles.py"
    assert starts >= 5


@pytest.mark.parametrize(
    "source",
    [
        "ray.remote(Grader).remote()",
        "ray.remote(num_cpus=1)(Grader)",
        "ray.remote(Grader).options(num_cpus=1).remote()",
        "rows.map_batches(draw)",
        "ray.util.placement_group(bundles, bundle_label_selector=[{}])",
        "ScalingConfig(num_workers=2)",
    ],
)
def test_a_start_without_a_role_is_found(source: str) -> None:
    assert not any(map(_has_role, _starts_of(source)))
    assert _starts_of(source)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what ran on the nodes of a real Ray of four roles."""
    directory = tmp_path_factory.mktemp("roles")
    driver = Path(__file__).parent / "support" / "roles_driver.py"
    done = subprocess.run(
        [sys.executable, str(driver), str(directory)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads((directory / "places.json").read_text())
    return seen


@pytest.mark.real
def test_each_process_runs_on_a_node_of_its_role(places: dict[str, Any]) -> None:
    actors = {tuple(pair) for pair in places["actors"]}
    for name, role in zip(WORKERS, ("sampler", "grader", "trainer"), strict=True):
        where = {at for actor, at in actors if name in actor}
        assert where == {role}, name
    assert ["work", "trainer"] in places["functions"]


@pytest.mark.real
def test_helpers_stay_on_the_head(places: dict[str, Any]) -> None:
    """The source of units, the controller of Ray Train, and the helpers of both libraries."""
    # Ray Train places its watcher of preemptions anywhere, and restarts it if its node is lost.
    others = (*WORKERS, "PreemptionWatcher")
    helpers = [pair for pair in places["actors"] if not any(name in pair[0] for name in others)]
    assert {role for _, role in helpers} == {"driver"}, helpers
    assert any("TrainController" in name for name, _ in helpers)
    assert [role for name, role in places["functions"] if name == "emit"] == ["driver"]


@pytest.mark.real
def test_engines_are_gone_before_training_asks(places: dict[str, Any]) -> None:
    """Their GPUs are free as Ray hears of the gang of training workers."""
    assert not [name for name in places["left"] if "MapWorker" in name]
    assert places["free_gpus_at_gang"] == 1.0
    alone = [kinds for kinds in places["together"] if "RayTrainWorker" in kinds]
    assert alone == [["RayTrainWorker"]]


@pytest.mark.real
def test_graders_come_while_answers_stream_and_go_with_the_last(places: dict[str, Any]) -> None:
    assert places["graded_while_drawing"]
    assert ["MapWorker", "GraderActor"] in places["together"]
    assert places["verdicts"] == 8
    # Idle graders wait 3 s for more work.
    assert places["graders_gone_after_s"] < 15
