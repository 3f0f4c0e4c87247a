"""Real engines on several nodes, killed repeatedly: rows missing, doubled or changed.

    python benchmarks/sampling_kills.py --kills 20 --out figures.json

`ssd-ray sample` draws with vLLM and a model of 200,000 random parameters. The first run is
undisturbed. The second runs on a `ray.cluster_utils` cluster of a head without cores and two
nodes. An engine, a node and the driver are killed in turn (SIGKILL) at random moments. Lost
nodes are replaced and lost drivers restarted.

The exit status is 0 if and only if:

- no row is missing or doubled,
- every row equals that of the undisturbed run,
- no process of a victim is left after ten seconds.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from machine import machine

sys.path.insert(0, str(Path(__file__).parent.parent))
LIMIT_S = 10.0
WAIT_S = 600
VICTIMS = ("engine", "node", "driver")
RECIPE = """
name: kills
description: a random model, killed again and again
model: {{source: {model}, dtype: float32, max_model_len: 1024}}
prompts: {{source: {problems}, statement_column: statement, contamination: allow}}
sample: {{temperature: 1.2, top_k: 20, top_p: 0.95, samples_per_prompt: 2,
  max_tokens: {tokens}, shard_rows: 8}}
evaluate: {{benchmarks: [builtin], limit: 1, arms: {{base: {{model: base, temperature: 0.7}}}}}}
engine: {{enforce_eager: true, kv_cache_gib: 0.25, max_num_seqs: 8, cpus: 1}}
cluster: {{device: cpu, min_engines: 2, max_engines: 2}}
"""


class Victims:
    """A cluster of a head and two nodes, a driver on it, and methods that kill parts of them."""

    def __init__(self, recipe: Path, run: Path, log: Path):
        from ray.cluster_utils import Cluster

        self.recipe, self.run, self.out, self.log = recipe, run, run / "samples", log
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8}
        )
        self.nodes = [self._node(), self._node()]
        self.driver: subprocess.Popen[bytes] | None = None

    def _node(self):
        return self.cluster.add_node(num_cpus=1, object_store_memory=10**8, wait=False)

    def drive(self) -> None:
        """Start the driver if none is running."""
        if self.driver is None or self.driver.poll() is not None:
            command = [
                sys.executable,
                "-m",
                "ssd_ray",
                "sample",
                str(self.recipe),
                "--out",
                str(self.run),
                "--quiet",
            ]
            environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
            with self.log.open("ab") as log:
                self.driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def engines(self) -> list[psutil.Process]:
        """Return the engine processes that run, and their descendants."""
        processes = []
        for path in (self.run / ".engines").glob("*/*.json"):
            try:
                process = psutil.Process(json.loads(path.read_text())["pid"])
                if "ray::" in " ".join(process.cmdline()):
                    processes += [process, *process.children(recursive=True)]
            except (psutil.Error, FileNotFoundError):
                continue
        return processes

    def kill(self, victim: str, chance: random.Random) -> list[psutil.Process]:
        """Kill one victim; return the processes that must end with it."""
        engines = self.engines()
        if victim == "engine":
            owners = [process for process in engines if "ray::" in " ".join(process.cmdline())]
            chosen = chance.choice(owners)
            family = [chosen, *chosen.children(recursive=True)]
            chosen.kill()
            return family
        if victim == "node":
            node = self.nodes.pop(chance.randrange(len(self.nodes)))
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            family = [process for process in raylet.children(recursive=True) if process in engines]
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(self._node())
            return family
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        return engines

    def close(self) -> None:
        """End the driver and the cluster."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.terminate()
            self.driver.wait()
        self.cluster.shutdown()


def rows_done(out: Path) -> int:
    """Return the number of finished answers, in shards or in a journal."""
    from ssd_ray.artifacts import ledger

    lines = sum(path.read_bytes().count(b"\n") for path in _listed(out / ".journal"))
    return lines + sum(record.span.rows for record in ledger.tail(out).new())


def _listed(directory: Path) -> list[Path]:
    return [path for path in directory.glob("*.jsonl") if path.exists()]


def rows_of(out: Path) -> dict[tuple[str, int], object]:
    """Return every row by its key; exit if a key occurs twice."""
    from ssd_ray.artifacts import shards
    from ssd_ray.schema import Completion

    rows = list(shards.read_rows(out, Completion))
    doubled = [
        key
        for key, count in Counter((row.prompt_id, row.sample_index) for row in rows).items()
        if count > 1
    ]
    if doubled:
        sys.exit(f"drawn twice: {doubled[:5]}")
    return {(row.prompt_id, row.sample_index): row for row in rows}


def disturb(
    victims: Victims, kills: int, total: int, chance: random.Random
) -> list[dict[str, object]]:
    """Kill each kind of victim in turn, at random times, and list what survives each kill."""
    events = []
    for number in range(kills):
        victims.drive()
        deadline = time.monotonic() + WAIT_S
        goal = total * (number + chance.random()) / (kills + 1)
        while rows_done(victims.out) < goal or not victims.engines():
            if victims.driver is None or victims.driver.poll() is not None:
                sys.exit(
                    f"the driver ended before kill {number + 1}: {victims.log.read_text()[-2000:]}"
                )
            if time.monotonic() > deadline:
                sys.exit(
                    f"waited too long before kill {number + 1}: {victims.log.read_text()[-2000:]}"
                )
            time.sleep(0.05)
        victim, began = VICTIMS[number % len(VICTIMS)], time.monotonic()
        done = rows_done(victims.out)
        _, alive = psutil.wait_procs(victims.kill(victim, chance), timeout=3 * LIMIT_S)
        gone = time.monotonic() - began
        events.append({"victim": victim, "at_row": done, "gone_after_s": gone, "left": len(alive)})
        print(
            f"kill {number + 1}: {victim} at {done} of {total} answers, gone after {gone:.1f} s",
            flush=True,
        )
    victims.drive()
    assert victims.driver is not None
    if victims.driver.wait(WAIT_S):
        sys.exit(f"the run failed: {victims.log.read_text()[-3000:]}")
    return events


def measure(directory: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return the figures."""
    from tests.support.tiny import tiny_model

    model = tiny_model(directory / "model", "qwen3")
    problems = [
        {"statement": f"Write program number {number}."} for number in range(options.prompts)
    ]
    (directory / "problems.jsonl").write_text("\n".join(map(json.dumps, problems)) + "\n")
    recipe = directory / "kills.yaml"
    recipe.write_text(
        RECIPE.format(model=model, problems=directory / "problems.jsonl", tokens=options.tokens)
    )
    command = [
        sys.executable,
        "-m",
        "ssd_ray",
        "sample",
        str(recipe),
        "--quiet",
        "--out",
        str(directory / "calm"),
    ]
    subprocess.run(
        [*command, "--set", "cluster.min_engines=1", "--set", "cluster.max_engines=1"], check=True
    )
    calm = rows_of(directory / "calm" / "samples")
    victims = Victims(recipe, directory / "killed", directory / "driver.log")
    began = time.monotonic()
    try:
        events = disturb(victims, options.kills, len(calm), random.Random(options.seed))
    finally:
        victims.close()
    killed = rows_of(directory / "killed" / "samples")
    facts = json.loads((directory / "killed" / "samples" / "manifest.json").read_text())["facts"]
    return {
        "answers": len(calm),
        "kills": len(events),
        "missing": len(calm.keys() - killed.keys()),
        "doubled": 0,
        "different": sum(killed[key] != row for key, row in calm.items() if key in killed),
        "failed": len(facts["failed"]),
        "engine_losses_counted": facts["engine_losses"],
        "slowest_to_go_s": max(float(str(each["gone_after_s"])) for each in events),
        "left_running": sum(int(str(each["left"])) for each in events),
        "seconds": time.monotonic() - began,
        "each": events,
    }


def main() -> None:
    """Kill and compare; print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), options)
    for key, value in figures.items():
        if key != "each":
            print(f"{key:>22}: {value}")
    if options.out:
        options.out.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n")
    wrong = ("missing", "doubled", "different", "failed", "left_running")
    sys.exit(any(figures[key] for key in wrong) or float(str(figures["slowest_to_go_s"])) > LIMIT_S)


if __name__ == "__main__":
    main()
