"""A real Ray in the cluster double, by the session of docs/cluster.md.

One start-up serves all tests. Real: kubectl, Ray's head, its autoscaler, containers, the pipeline.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ssd_ray.schema import Completion
from tests.kube.runtimes import missing_for_containers
from tests.kube.session import Result, Shell, Step, differences, steps_of
from tests.support.tiny_run import completions

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        bool(missing_for_containers()),
        reason=f"a pod is a container, and they cannot be had: {missing_for_containers()}",
    ),
]
TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "cluster.md"
STEP_S = 600.0
"""Longest wait for the end of one command."""
ALLOWANCE = 3
"""Other tests run at the same time. `docs/cluster.md` has the times of two quiet cores."""
START_S = 60.0 * ALLOWANCE
REPLACED_S = 75.0 * ALLOWANCE
IDLE_S = 60.0
"""`idleTimeoutSeconds` of the overlay `local`."""
REQUESTS_A_SECOND = 2.0
PLACES = {"EngineWorker": "sampler-spot", "RayTrainWorker": "trainer", "GraderActor": "grader"}
"""Group of pods by a part of the name of a class of actors."""


@dataclass(kw_only=True)
class Pods:
    """Events of pods, from one watch of the API."""

    events: list[tuple[float, str, str, str]] = field(default_factory=list)
    """Time, kind of event, group, name."""
    shorts: set[str] = field(default_factory=set)
    """Parts of the names of containers and network namespaces."""

    def follow(self, kubeconfig: Path) -> None:
        """Note the events until the server goes away."""
        config = yaml.safe_load(kubeconfig.read_text())
        url = (
            f"{config['clusters'][0]['cluster']['server']}/api/v1/pods?watch=1&timeoutSeconds=3600"
        )
        token = config["users"][0]["user"]["token"]
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        context = ssl.create_default_context(cafile=str(kubeconfig.parent / "ca.crt"))
        try:
            with urllib.request.urlopen(request, context=context) as answer:
                for line in answer:
                    event = json.loads(line)
                    metadata = event["object"]["metadata"]
                    group = metadata["labels"]["ray.io/group"]
                    note = (time.time(), event["type"], group, metadata["name"])
                    self.events.append(note)
                    self.shorts.add(metadata["uid"].split("-")[0])
        except OSError:
            return

    def names(self, group: str) -> list[str]:
        """Return the pods of a group in their order."""
        return list(dict.fromkeys(name for _, _, each, name in self.events if each == group))

    def last_end(self, group: str) -> float:
        """Return the time at which the last pod of a group was gone."""
        return max(at for at, kind, each, _ in self.events if (kind, each) == ("DELETED", group))


@dataclass(kw_only=True)
class Session:
    """The session of the page as it went."""

    results: list[Result] = field(default_factory=list)
    pods: Pods = field(default_factory=Pods)
    engines: dict[str, float] = field(default_factory=dict)
    """Time of the first answer of each engine."""
    actors: set[tuple[str, str]] = field(default_factory=set)
    """Classes of actors with the group of their pod."""
    complete: dict[str, float] = field(default_factory=dict)
    """Time at which each artifact of the run was complete."""
    samples: list[Completion] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Leftovers after the end."""

    def result(self, pattern: str) -> Result:
        """Return the first command that contains a pattern."""
        return next(each for each in self.results if re.search(pattern, each.step.command))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Run the page's commands one by one, and watch pods and answers."""
    folder = tmp_path_factory.mktemp("kube")
    cluster = folder / f"ssd-ray-cluster-{os.getuid()}"
    run = cluster / "machine" / "claims" / "default" / "ssd-ray-shared" / "runs" / "quickstart"
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    shell = Shell(TOP, {"TMPDIR": str(folder), "PATH": path})
    seen = Session()
    over = threading.Event()
    threads = [
        threading.Thread(target=_follow_pods, args=(seen.pods, cluster), daemon=True),
        threading.Thread(target=_note_engines, args=(seen.engines, run, over), daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        for step in steps_of(PAGE):
            if step.command.startswith("kubectl delete -k"):
                _look_inside(seen, shell, run)
            # An installed package is not installed again.
            command = step.command.replace("make ", "make --assume-old=.venv/installed ")
            seen.results.append(shell.run(step, STEP_S, command))
            last = seen.results[-1]
            print(f"{last.seconds:6.1f} s  {step.command}\n{last.output}", file=sys.stderr)
        seen.left = _leftovers(seen.pods, cluster)
        yield seen
    finally:
        over.set()
        shell.close()
        down = [sys.executable, "-m", "tests.kube", "down", "--folder", str(cluster)]
        subprocess.run(down, cwd=TOP, check=True)


def _follow_pods(pods: Pods, cluster: Path) -> None:
    while not (cluster / "state.json").exists():
        time.sleep(0.2)
    pods.follow(cluster / "api" / "kubeconfig")


def _note_engines(engines: dict[str, float], run: Path, over: threading.Event) -> None:
    """Note the first answer of each engine by its journals, named SPAN.ENGINE.jsonl."""
    while not over.wait(0.2):
        # A slow machine may take the node after the last sample: then answers of arms count.
        for path in (*run.glob("samples/.journal/*.jsonl"), *run.glob("*/*/.journal/*.jsonl")):
            engines.setdefault(path.name.split(".")[-2], time.time())


def _look_inside(seen: Session, shell: Shell, run: Path) -> None:
    """Note where actors ran, and what the run has made."""
    (address,) = re.findall(r"http\S+", _value(shell, "$RAY_ADDRESS"))
    token = _value(shell, "$RAY_AUTH_TOKEN")
    groups = {
        node["node_id"]: node["labels"].get("ray.io/node-group", "")
        for node in _state(address, token, "nodes")
    }
    for actor in _state(address, token, "actors"):
        seen.actors.add((actor["class_name"], groups.get(actor["node_id"], "")))
    for manifest in run.rglob("manifest.json"):
        name = str(manifest.parent.relative_to(run))
        seen.complete[name] = manifest.stat().st_mtime
    seen.samples = completions(run / "samples")


def _value(shell: Shell, word: str) -> str:
    return shell.run(Step(command=f"echo {word}", output=""), STEP_S).output.strip()


def _state(address: str, token: str, kind: str) -> list[dict[str, Any]]:
    """Return all rows of a table of Ray, those of ended actors and nodes included."""
    request = urllib.request.Request(
        f"{address}/api/v0/{kind}?limit=10000&detail=1",
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return rows


def _leftovers(pods: Pods, cluster: Path) -> list[str]:
    """Return containers, network namespaces, processes and files that outlived the cluster."""
    texts = []
    for command in (["podman", "ps", "--all", "--format", "{{.Names}}"], ["ip", "netns", "list"]):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        texts += done.stdout.splitlines()
    left = [text for text in texts for short in pods.shorts if short in text]
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(cluster) in words:
            left.append(words)
    return left + [str(cluster)] * cluster.exists()


def test_the_page_shows_what_happens(session: Session) -> None:
    assert differences(session.results) == []


def test_a_head_answers_in_time(session: Session) -> None:
    assert session.result("make .*cluster").seconds < START_S


def test_processes_run_in_pods_of_their_role(session: Session) -> None:
    for name, group in PLACES.items():
        places = {each for class_name, each in session.actors if name in class_name}
        assert places == {group}, session.actors


def test_a_lost_spot_pod_is_replaced_by_one_that_draws(session: Session) -> None:
    lost_at = session.result("delete node").began
    assert len(session.pods.names("sampler-spot")) >= 2
    drew = [at for at in session.engines.values() if at > lost_at]
    assert drew, session.engines
    assert min(drew) - lost_at < REPLACED_S


def test_no_answer_is_lost_or_doubled(session: Session) -> None:
    keys = [(row.prompt_id, row.sample_index) for row in session.samples]
    assert len(keys) == 80
    assert len(set(keys)) == 80


def test_idle_pods_are_given_back(session: Session) -> None:
    for group, artifact in (
        ("sampler-spot", "generations/ssd"),
        ("trainer", "checkpoint"),
        ("grader", "verdicts/ssd"),
    ):
        idle_s = session.pods.last_end(group) - session.complete[artifact]
        assert idle_s < IDLE_S + 15 * ALLOWANCE, group


def test_an_idle_cluster_asks_the_api_seldom(session: Session) -> None:
    first, last = [
        int(number) for number in re.findall(r"total (\d+)", session.result("/metrics").output)
    ]
    assert (last - first) / 20 < REQUESTS_A_SECOND


def test_nothing_is_left_behind(session: Session) -> None:
    assert session.left == []
