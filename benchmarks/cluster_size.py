"""A million prompts in the cluster double: 64 engine doubles on 8 pods that start at none.

    python benchmarks/cluster_size.py --prompts 1000000 --out figures.json

Real: kubectl, Ray's head and autoscaler, `ray job submit`, containers, and the path of the
samples. Doubles: the Kubernetes API, KubeRay's operator, and the engine. It needs root and what
`make cluster` needs. All pods share the cores of this machine, so CPU time by process is the
figure to go by. An engine answers at once, or with `--pace` at a steady pace without CPU time.
"""

import argparse
import base64
import functools
import json
import os
import queue
import resource
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from machine import machine
from sampling_at_size import Echo, check, render

TOP = Path(__file__).parents[1]
NAME, SHARED, IDLE_S = "ssd-ray", Path("/mnt/shared"), 60
SHARD_ROWS = 1_024
TICK_S = 0.1
"""Time between two lots of answers at a pace."""
ROWS_PER_SECOND, DRIVER_GIB, RELEASE_S, REQUESTS_A_SECOND = 4_000, 1.5, IDLE_S + 15, 2.0
PARTS = {
    "cluster_size.py --drive": "driver",
    "EngineWorker": "engines",
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylets",
    "kuberay-autoscaler": "autoscaler",
    "dashboard": "dashboard and agents",
    "tests.kube": "cluster double",
}
"""Part of the work by a piece of the command line; the first that fits counts."""


class Paced(Echo):
    """An engine double that answers its requests in their order at a steady pace."""

    def __init__(self, pace: float) -> None:
        self._lot = max(1, round(pace * TICK_S))
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Any]] = queue.SimpleQueue()
        threading.Thread(target=self._draw, daemon=True).start()

    def submit(self, request):
        """Return a future that is done once its place in the order comes."""
        future: Future[Any] = Future()
        self._waiting.put((future, request))
        return future

    def _draw(self) -> None:
        next_lot = time.monotonic()
        while True:
            for _ in range(self._lot):
                future, request = self._waiting.get()
                future.set_result(super().submit(request).result())
            # After idle time, the pace begins again.
            next_lot = max(next_lot + TICK_S, time.monotonic() - TICK_S)
            time.sleep(max(0.0, next_lot - time.monotonic()))


def drive(directory: Path, engines: int, pace: float) -> None:
    """Draw one answer to each prompt; this is the job in the cluster."""
    from ssd_ray import cluster
    from ssd_ray.config import Decoding
    from ssd_ray.inference.crashes import heartbeat
    from ssd_ray.inference.engine_pool import EnginePool
    from ssd_ray.inference.generation import SamplingRun
    from ssd_ray.inference.pool import Pool
    from ssd_ray.inference.vllm.placement import Resources
    from ssd_ray.inference.work.jobs import JobSpec
    from ssd_ray.inference.worker import EngineSpec
    from ssd_ray.progress import LineProgress

    out = directory / "samples"
    out.mkdir()
    seen: list[tuple[float, int, int]] = []
    done = threading.Event()
    make_engine = functools.partial(Paced, pace) if pace else Echo
    spec = EngineSpec(
        make_engine=make_engine, control=directory / "control", logs=directory / "logs"
    )

    def watch() -> None:
        while not done.wait(1.0):
            there = heartbeat.read(spec.control)
            ready = sum(one.ready > 0 for one in there)
            seen.append((time.time(), ready, sum(one.rows for one in there)))

    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=directory / "prompts",
        out=out,
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=64,
        shard_rows=SHARD_ROWS,
    )
    size = Pool(
        min_engines=1,
        max_engines=engines,
        concurrent_units=2,
        resources=Resources(1, 0, {"num_cpus": 1}),
    )
    progress = LineProgress(10)
    began = time.time()
    with cluster.connected():
        threading.Thread(target=watch, daemon=True).start()
        with EnginePool(spec, size, max_failures=3, progress=progress) as pool:
            facts = SamplingRun(job=job, engines=pool, ended=lambda: True, progress=progress).draw()
        done.set()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    document = {
        "rows": facts.rows,
        "began": began,
        "ended": time.time(),
        "seen": seen,
        "driver_peak_gib": usage.ru_maxrss / 2**20,
        "driver_cpu_s": usage.ru_utime + usage.ru_stime,
    }
    (directory / "driver.json").write_text(json.dumps(document))


@dataclass(kw_only=True)
class Double:
    """A cluster double in a directory, as `make cluster` starts it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def volume(self) -> Path:
        """The shared volume on this machine."""
        return self.folder / "machine" / "claims" / "default" / f"{NAME}-shared"

    def __enter__(self) -> "Double":
        scripts = sysconfig.get_path("scripts")
        self.environment["PATH"] = f"{scripts}{os.pathsep}{self.environment['PATH']}"
        self.run(sys.executable, "-m", "tests.kube", "up", "--folder", str(self.folder))
        self.environment["KUBECONFIG"] = str(self.folder / "api" / "kubeconfig")
        return self

    def __exit__(self, *_: object) -> None:
        self.run(sys.executable, "-m", "tests.kube", "down", "--folder", str(self.folder))

    def run(self, *command: str, text: str = "") -> str:
        """Return the output of a command, which has to succeed."""
        done = subprocess.run(
            command, cwd=TOP, env=self.environment, input=text, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")
        return done.stdout

    def items(self, kind: str, *words: str) -> list[Any]:
        """Return the objects of a kind."""
        listed = json.loads(self.run("kubectl", "get", kind, *words, "-o", "json"))
        return list(listed["items"])

    def requests(self) -> int:
        """Return how many requests the API has answered."""
        return int(self.run("kubectl", "get", "--raw", "/metrics").split()[-1])

    def apply(self, pods: int, engines_per_pod: int) -> None:
        """Apply the overlay `local` with one group, and wait for the head."""
        objects = list(yaml.safe_load_all(self.run("kubectl", "kustomize", "k8s/overlays/local")))
        (cluster,) = (each for each in objects if each["kind"] == "RayCluster")
        spec = cluster["spec"]
        spec["autoscalerOptions"]["idleTimeoutSeconds"] = IDLE_S
        amounts = {"cpu": "2", "memory": "6Gi"}
        (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
        container["resources"] = {"requests": amounts, "limits": amounts}
        group = spec["workerGroupSpecs"][0]
        group |= {"maxReplicas": pods, "idleTimeoutSeconds": IDLE_S}
        group["rayStartParams"]["num-cpus"] = str(engines_per_pod)
        spec["workerGroupSpecs"] = [group]
        self.run("kubectl", "apply", "-f", "-", text=yaml.safe_dump_all(objects))
        while not self._export():
            time.sleep(0.5)

    def _export(self) -> bool:
        """Set the variables for `ray job submit`. Return False until a head is ready."""
        (cluster,) = self.items("rayclusters")
        status = cluster.get("status", {})
        ready = {each["type"]: each["status"] for each in status.get("conditions", ())}
        if ready.get("HeadPodReady") != "True":
            return False
        (secret,) = self.items("secrets", "--field-selector", f"metadata.name={NAME}")
        token = base64.b64decode(secret["data"]["auth_token"]).decode()
        address = f"http://{status['head']['podIP']}:8265"
        self.environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
        self.environment["RAY_AUTH_TOKEN"] = token
        return True

    def workers(self) -> int:
        """Return the number of worker pods."""
        return len(self.items("pods", "-l", "ray.io/node-type=worker"))


class CpuTimes:
    """CPU seconds of every process of this machine by part of the work, over time."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, float], tuple[str, float]] = {}
        self.looks: list[tuple[float, Counter[str]]] = []

    def look(self) -> None:
        """Note the CPU time of each process; what one uses after its last look is lost."""
        for process in psutil.process_iter(["cmdline", "cpu_times", "create_time"]):
            words, times = process.info["cmdline"], process.info["cpu_times"]
            if not words or times is None:
                continue
            line = " ".join(words)
            part = next((part for piece, part in PARTS.items() if piece in line), "others")
            key = (process.pid, process.info["create_time"])
            self._seconds[key] = (part, times.user + times.system)
        totals: Counter[str] = Counter()
        for part, seconds in self._seconds.values():
            totals[part] += seconds
        self.looks.append((time.time(), totals))

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Return the CPU seconds of each part from the last look before to the first after."""
        before = max((look for look in self.looks if look[0] <= began), default=self.looks[0])
        after = min((look for look in self.looks if look[0] >= ended), default=self.looks[-1])
        return {part: after[1][part] - before[1][part] for part in sorted(after[1])}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the job in a new cluster, and return the figures."""
    with Double(folder=folder) as double:
        double.apply(options.pods, options.engines // options.pods)
        directory = double.volume / "size"
        directory.mkdir()
        directory.chmod(0o777)
        render(directory / "prompts", options.prompts)
        idle_before = double.requests()
        time.sleep(20)
        idle = (double.requests() - idle_before - 1) / 20
        before, submitted, times = double.requests(), time.time(), CpuTimes()
        times.look()
        job = ["ray", "job", "submit", "--working-dir", "benchmarks", "--", "python"]
        job += ["cluster_size.py", "--drive", str(SHARED / "size")]
        job += ["--engines", str(options.engines), "--pace", str(options.pace)]
        client = subprocess.Popen(job, cwd=TOP, env=double.environment)
        while client.poll() is None:
            time.sleep(2)
            times.look()
        if client.returncode:
            sys.exit("the job failed")
        ended = time.time()
        requests = (double.requests() - before) / (ended - submitted)
        pods = double.workers()
        driver = json.loads((directory / "driver.json").read_text())
        while double.workers():
            time.sleep(1)
        released = time.time() - driver["ended"]
        check(directory / "samples", options.prompts)
        shards = [path.stat().st_mtime for path in (directory / "samples").glob("*.parquet")]
    return figures(driver, times, options.engines, sorted(shards), submitted) | {
        "pods": pods,
        "api_requests_a_second": requests,
        "api_requests_a_second_idle": idle,
        "idle_to_released_s": released,
    }


def figures(
    driver: dict[str, Any], times: CpuTimes, engines: int, shards: list[float], submitted: float
) -> dict[str, Any]:
    """Return the figures of the job from its notes and the times of its shards.

    The steady part lasts from the start of the last engine to 95 % of the rows.
    """
    rows, seen = driver["rows"], driver["seen"]
    most = max(ready for _, ready, _ in seen)
    first = next((when for when, ready, _ in seen if ready), None)
    steady = [(when, done) for when, ready, done in seen if ready == most and done < 0.95 * rows]
    rate, costs = None, {}
    if len(steady) > 1:
        (began, least), (ended, greatest) = steady[0], steady[-1]
        rate = (greatest - least) / (ended - began)
        costs = {
            part: 1e6 * seconds / (greatest - least)
            for part, seconds in times.between(began, ended).items()
        }
    return {
        "prompts": rows,
        "engines": engines,
        "most_engines": most,
        "rows_per_s_steady": rate,
        "rows_per_s_submission_to_end": rows / (driver["ended"] - submitted),
        "steady_s": [when - submitted for when, _ in (steady[:1] + steady[-1:])],
        "first_engine_s": first and first - submitted,
        "first_shard_s": shards[0] - submitted,
        "last_shard_s": shards[-1] - submitted,
        "driver_peak_gib": driver["driver_peak_gib"],
        "driver_cpu_s": driver["driver_cpu_s"],
        "cpu_s": times.between(submitted, driver["ended"]),
        "steady_cpu_us_a_row": costs,
    }


def main() -> None:
    """Measure; print and write the figures. Exit status 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--engines", type=int, default=64, help="of all pods")
    parser.add_argument("--pace", type=float, default=0.0, help="answers a second of an engine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.engines, options.pace)
        return
    sys.path.insert(0, str(TOP))
    from tests.kube.runtimes import missing_for_containers

    if missing := missing_for_containers():
        sys.exit(f"a pod is a container, and this is missing: {missing}")
    with tempfile.TemporaryDirectory(prefix="ssd-ray-size-") as name:
        # Pods have a user of their own.
        Path(name).chmod(0o711)
        results = measure(Path(name) / "cluster", options)
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")
    missed = [
        results["most_engines"] < options.engines,
        not options.pace and results["rows_per_s_submission_to_end"] < ROWS_PER_SECOND,
        results["driver_peak_gib"] > DRIVER_GIB,
        results["idle_to_released_s"] > RELEASE_S,
        results["api_requests_a_second_idle"] > REQUESTS_A_SECOND,
    ]
    sys.exit(any(missed))


if __name__ == "__main__":
    # Workers find the double by a name that they can import.
    from cluster_size import main as _main

    _main()
