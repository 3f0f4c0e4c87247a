"""Check and measure a GPU in one command: a table of figures with limits, and a JSON file.

    python benchmarks/gpu.py --out gpu.json

It needs one GPU of 80 GB and no hub: the model is a random Qwen3 of 1B parameters. Parts run in
turn, each case in a process of its own. A failed case is a row with the last line of its output.
A figure may have limits, its bar. After `--minutes` no further part starts.

- operator: tokens kept by the exact sampler against the definition in float64.
- sampling: tokens/s of `ssd-ray sample` against bare `LLM.generate`, 64 to 1,024 requests.
- reference: two optimizer steps against plain torch, in float32 and bfloat16.
- variants: packed, Liger and offloaded training against plain settings.
- resume: saved, killed and resumed against uninterrupted; the export in vLLM.
- speed: MFU on sequences of full length, and the planner's memory against the measured.

Exit codes:

- 0: every bar of the parts that ran was held, or there is no GPU: then it says so.
- 1: a bar was not held.
- 2: a fault: a GPU that cannot be used, a case that failed, or wrong arguments.

`--device cpu --tiny` runs the same code on a CPU, to test it. Written without a GPU and never run
on one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from gpu_model import LARGE, TINY, Size, make_dataset, make_model
from machine import machine

from ssd_ray import recipes
from ssd_ray.config import EngineConfig
from ssd_ray.inference.vllm.arguments import engine_environment
from ssd_ray.machine.findings import build_finding, gpu_findings
from ssd_ray.machine.gpus import Gpus, read_gpus
from ssd_ray.machine.installed import TorchBuild, engine_build, torch_build
from ssd_ray.models import architecture
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.planner.clusters import plan_training

HERE = Path(__file__).parent
_CASE_TIMEOUT_S = 600
_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and its bar: the limits it should keep."""

    part: str
    name: str
    value: float | None
    """None if the case failed or was skipped; `note` has the reason."""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    failed: bool = False
    """True if the case raised or was killed."""

    @property
    def verdict(self) -> str:
        """Return "yes" or "NO" for the bar, "" without a bar, "-" without a value.

        A failed case is "FAILED".
        """
        if self.failed:
            return "FAILED"
        if self.value is None:
            return "-"
        if self.at_least is None and self.at_most is None:
            return ""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return "yes" if low <= self.value <= high else "NO"


class CaseError(Exception):
    """A case that failed; the text is the last line of its output."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The model and the data of all parts."""

    folder: Path
    device: str
    size: Size

    @property
    def dtype(self) -> str:
        """Precision of the model's files, and of the parts without a precision of their own."""
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def model(self) -> Path:
        """Directory of the random model."""
        path = self.folder / "model"
        return path if path.exists() else make_model(path, self.size, self.dtype)

    def dataset(self, *, equal: bool = False) -> Path:
        """Directory of the sequences."""
        path = self.folder / ("equal" if equal else "mixed")
        return path if path.exists() else make_dataset(path, self.size, equal=equal)

    def train(self, **changes: Any) -> dict[str, Any]:
        """Return the section `train` of a recipe with few steps."""
        return {
            "steps": _STEPS,
            "global_batch_size": 8,
            "micro_batch_tokens": 2 * self.size.longest,
            "warmup_steps": 0,
            "learning_rate": 1e-4,
            "dtype": self.dtype,
            "zero_stage": 3,
            "loss_chunk_tokens": min(1024, self.size.longest),
            **changes,
        }

    def run(self, case: str, name: str, **plan: Any) -> dict[str, Any]:
        """Run a case in a process of its own and return its result.

        Raises:
            CaseError: the case failed or was killed.
        """
        file = self.folder / f"{name}.json"
        log = file.with_suffix(".log")
        result = file.with_suffix(".result")
        file.write_text(
            json.dumps({"case": case, "device": self.device, "result": str(result), **plan})
        )
        is_served = case == "served_likelihoods"
        if self.device == "cpu" and not is_served:
            status = _fork(file, log)
        else:
            # torch and vLLM read their environment when they are loaded.
            environment = engine_environment(EngineConfig(), self.device) if is_served else {}
            status = _start(file, log, environment)
        if status:
            lines = log.read_text().strip().splitlines() or ["no output"]
            raise CaseError(f"status {status}: {lines[-1][:200]}")
        values: dict[str, Any] = json.loads(result.read_text())
        return values

    def steps(self, name: str, *, equal: bool = False, **plan: Any) -> list[dict[str, Any]]:
        """Train and return the lines of the loss log."""
        choices = self.train(**plan.pop("train", {}))
        paths = {"dataset": str(self.dataset(equal=equal)), "model": str(self.model)}
        out = plan.pop("out", str(self.folder / "runs" / name))
        lines: list[dict[str, Any]] = self.run(
            "train", name, **paths, out=out, train=choices, **plan
        )["lines"]
        return lines

    @cached_property
    def plain(self) -> list[dict[str, Any]]:
        """Return the loss log of an uninterrupted training with the usual settings."""
        return self.steps("plain")


def _start(file: Path, log: Path, environment: dict[str, str]) -> int:
    """Run a case in a new interpreter and return its status."""
    with log.open("w") as output:
        return subprocess.run(
            [sys.executable, str(HERE / "gpu_cases.py"), str(file)],
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            timeout=_CASE_TIMEOUT_S,
            check=False,
        ).returncode


def _fork(file: Path, log: Path) -> int:
    """Run a case in a fork of a process with the libraries loaded, and return its status.

    Libraries take most of a tiny case's time. A process that has used CUDA cannot be forked.
    """
    import gpu_cases

    os.environ |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    context = get_context("forkserver")
    context.set_forkserver_preload(["gpu", *gpu_cases.LIBRARIES])
    process = context.Process(target=gpu_cases.run, args=(file, log))
    process.start()
    process.join(_CASE_TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        raise CaseError(f"no end after {_CASE_TIMEOUT_S} s")
    return process.exitcode


def _difference(first: float, second: float) -> float:
    """Return the difference as a share of the second."""
    return abs(first - second) / abs(second)


def operator_part(setup: Setup) -> Iterator[Row]:
    """Compare the tokens kept by the exact sampler with the definition."""
    result = setup.run("operator", "operator", vocabulary=setup.size.vocabulary, rows=256)
    yield Row(
        part="operator",
        name="share of rows with exactly the tokens kept by definition",
        value=result["equal"] / result["rows"],
        at_least=1.0,
        note=f"{result['rows']} rows, without those within rounding of p",
    )


def sampling_part(setup: Setup) -> Iterator[Row]:
    """Tokens/s of sampling against bare vLLM, and equal sequences of the two samplers."""
    import sampling

    tiny = setup.size is TINY
    for requests in (8,) if tiny else (64, 256, 1024):
        case = sampling.Case(requests, 16 if tiny else 256, short=True)
        here = [
            f"model.source={setup.model}",
            f"model.dtype={setup.dtype}",
            f"cluster.device={setup.device}",
            *([] if tiny else ["engine.enforce_eager=false", "engine.max_num_seqs=1024"]),
        ]
        rates, drawn = {}, {}
        run = setup.folder / f"sample-{requests}-vllm"
        for sampler in ("vllm", "exact"):
            out = setup.folder / f"sample-{requests}-{sampler}"
            chosen = [*sampling.overrides(case, sampler, setup.folder), *here]
            result = sampling.ours("quickstart", chosen, out)
            rates[sampler], drawn[sampler] = _rate(result), result["sequences"]
        chosen = [*sampling.overrides(case, "vllm", setup.folder), *here]
        bare = _rate(sampling.peer("vLLM", "quickstart", chosen, run))
        yield Row(
            part="sampling",
            name=f"{requests} requests, vLLM's sampler: tokens/s of bare vLLM's, share",
            value=rates["vllm"] / bare,
            at_least=None if tiny else 0.95,
            note=f"{rates['vllm']:,.0f} against {bare:,.0f} tokens/s",
        )
        yield Row(
            part="sampling",
            name=f"{requests} requests, exact sampler: tokens/s of bare vLLM's, share",
            value=rates["exact"] / bare,
            at_least=None if tiny else 0.9,
            note=f"{rates['exact']:,.0f} tokens/s",
        )
        same = sum(drawn["exact"][key] == ids for key, ids in drawn["vllm"].items())
        yield Row(
            part="sampling",
            name=f"{requests} requests: sequences equal with both samplers, share",
            value=same / len(drawn["vllm"]),
            note="the same seeds, but other random numbers on CUDA: no bar",
        )


def _rate(result: dict[str, Any]) -> float:
    return float(sum(map(len, result["sequences"].values())) / result["seconds"])


def reference_part(setup: Setup) -> Iterator[Row]:
    """Loss and gradient of two optimizer steps against the definition."""
    bars = {"float32": (1e-5, 1e-4, 1e-4), "bfloat16": (2e-3, 2e-2, 5e-3)}
    for dtype, limits in bars.items():
        choices = setup.train(dtype=dtype, steps=2)
        lines = setup.steps(f"steps-{dtype}", train={"dtype": dtype, "steps": 2})
        expected = setup.run(
            "reference",
            f"reference-{dtype}",
            model=str(setup.model),
            dataset=str(setup.dataset()),
            train=choices,
        )
        pairs = {
            "loss of the first step": (lines[0]["loss"], expected["losses"][0]),
            "norm of its gradient": (lines[0]["grad_norm"], expected["norms"][0]),
            "loss after the update": (lines[1]["loss"], expected["losses"][1]),
        }
        for (name, (ours, theirs)), limit in zip(pairs.items(), limits, strict=True):
            yield Row(
                part="reference",
                name=f"{dtype}: {name}, relative difference",
                value=_difference(ours, theirs),
                at_most=limit,
                note=f"{ours:.6f} against {theirs:.6f}",
            )


def variants_part(setup: Setup) -> Iterator[Row]:
    """Compare the losses and the speed of other settings with the plain ones."""
    plain = setup.plain
    limit = 1e-5 if setup.dtype == "float32" else 2e-3
    variants: dict[str, tuple[dict[str, Any], str]] = {
        "packed, sdpa": ({"packing": True}, ""),
        "packed, flash attention": (
            {"packing": True, "attention": "flash_attention_2"},
            _missing("flash_attn", "kernels"),
        ),
        "Liger": ({"loss_kernel": "liger"}, _missing("liger_kernel")),
        "offloaded optimizer": ({"offload": "optimizer"}, ""),
    }
    for name, (changes, lacking) in variants.items():
        if setup.device == "cpu" and name != "packed, sdpa":
            lacking = "needs a GPU"
        if lacking:
            yield Row(part="variants", name=name, value=None, note=lacking)
            continue
        try:
            lines = setup.steps(name.replace(" ", "-"), train=changes)
        except CaseError as error:
            yield Row(part="variants", name=name, value=None, note=str(error), failed=True)
            continue
        seconds, plainly = (median(line["seconds"] for line in each[1:]) for each in (lines, plain))
        yield Row(
            part="variants",
            name=f"{name}: largest relative difference of a loss",
            value=max(
                _difference(line["loss"], other["loss"])
                for line, other in zip(lines, plain, strict=True)
            ),
            at_most=limit,
            note=f"{seconds:.2f} s a step, {plainly:.2f} s plain",
        )


def _missing(*packages: str) -> str:
    """Return the reason why none of the packages can be used; empty if one is installed."""
    if any(importlib.util.find_spec(package) for package in packages):
        return ""
    return f"not installed: {' or '.join(packages)}"


def resume_part(setup: Setup) -> Iterator[Row]:
    """Train, save, kill and resume; compare losses, and the export in vLLM."""
    complete = setup.plain
    out = str(setup.folder / "runs" / "killed")
    try:
        setup.steps("killed", out=out, saved_at=2, killed_at=3)
    except CaseError as error:
        if "status -9" not in str(error):
            raise
    resumed = setup.steps("resumed", out=out, exports=True)
    yield Row(
        part="resume",
        name="first step after the kill",
        value=resumed[0]["step"],
        at_least=3,
        at_most=3,
    )
    yield Row(
        part="resume",
        name="largest relative difference of a loss to the uninterrupted run",
        value=max(
            _difference(line["loss"], other["loss"])
            for line, other in zip(resumed, complete[2:], strict=True)
        ),
        at_most=1e-6 if setup.device == "cpu" else 2e-3,
    )
    yield _export_row(setup, out)


def _export_row(setup: Setup, exported: str) -> Row:
    """Compare log-probabilities of the exported model in transformers and in vLLM."""
    from ssd_ray.training.data.examples import Examples

    examples = Examples(setup.dataset())
    sequences = [examples.row(index).tolist()[:256] for index in range(4)]
    plan = {"model": exported, "sequences": sequences, "dtype": setup.dtype}
    expected = setup.run("likelihoods", "likelihoods", **plan)["values"]
    served = setup.run("served_likelihoods", "served", **plan)["values"]
    differences = [
        abs(ours - theirs)
        for one, other in zip(served, expected, strict=True)
        for ours, theirs in zip(one, other, strict=True)
    ]
    return Row(
        part="resume",
        name="export in vLLM: mean difference of a token's log-probability",
        value=sum(differences) / len(differences),
        at_most=1e-3 if setup.dtype == "float32" else 0.05,
        note=f"{len(differences)} tokens",
    )


def speed_part(setup: Setup) -> Iterator[Row]:
    """MFU on sequences of full length, and the memory of the planner."""
    budget = 8 * setup.size.longest
    lines = setup.steps("speed", equal=True, train={"micro_batch_tokens": budget})
    rates = [line["mfu"] for line in lines[1:] if line.get("mfu") is not None]
    yield Row(
        part="speed",
        name="MFU, recomputation not counted",
        value=median(rates) if rates else None,
        at_least=0.35,
        note="the planner assumes 0.35" if rates else "no known peak of this device",
    )
    planned = _planned_gib(setup, budget)
    measured = max(line["memory_gib"] for line in lines)
    on_gpu = setup.device != "cpu"
    yield Row(
        part="speed",
        name="planned memory of a worker, share of the measured",
        value=planned / measured,
        at_least=0.8 if on_gpu else None,
        at_most=1.25 if on_gpu else None,
        note=f"{planned:.2f} against {measured:.2f} GiB"
        + ("" if on_gpu else "; on a CPU that includes the libraries"),
    )


def _planned_gib(setup: Setup, budget: int) -> float:
    """Return the planner's memory of the speed part, without the context of CUDA."""
    choices = setup.train(micro_batch_tokens=budget)
    recipe = recipes.load(
        "quickstart",
        [
            f"model.source={setup.model}",
            f"prepare.max_length={setup.size.longest}",
            f"cluster.device={setup.device}",
            "cluster.train_workers=1",
            "train.heldout_samples=0",
            "train.accumulate_locally=true",
            *(f"train.{name}={value}" for name, value in choices.items()),
        ],
    )
    model = architecture.read(setup.model)
    plan = plan_training(recipe, model, assumptions(["context_gib=0"]))
    return plan.requested.bytes_needed / 2**30


PARTS = {
    "operator": operator_part,
    "reference": reference_part,
    "variants": variants_part,
    "resume": resume_part,
    "speed": speed_part,
    "sampling": sampling_part,
}


def measure(setup: Setup, names: list[str], deadline: float) -> Iterator[Row]:
    """Yield the rows of all parts; a part that fails or has no time left is one row."""
    for name in names:
        if time.monotonic() > deadline:
            yield Row(part=name, name="not run", value=None, note="no time left")
            continue
        try:
            yield from PARTS[name](setup)
        # A failed part is a row of the table, and must not end the others.
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {error}".strip().splitlines()
            yield Row(part=name, name="failed", value=None, note=text[-1][:200], failed=True)


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'part':9}  {'bar held':8}  {'value':>10}  {'bar':14}  figure"]
    for row in rows:
        low = "" if row.at_least is None else f">= {row.at_least:g}"
        high = "" if row.at_most is None else f"<= {row.at_most:g}"
        bar = f"= {row.at_least:g}" if low and row.at_least == row.at_most else f"{low} {high}"
        value = "-" if row.value is None else f"{row.value:.4g}"
        note = f" ({row.note})" if row.note else ""
        lines.append(
            f"{row.part:9}  {row.verdict:8}  {value:>10}  {bar.strip():14}  {row.name}{note}"
        )
    return "\n".join(lines)


def status(rows: list[Row]) -> int:
    """Return the exit code for the rows of a run."""
    verdicts = {row.verdict for row in rows}
    if "FAILED" in verdicts:
        return 2
    return 1 if "NO" in verdicts else 0


def gpu_status(gpus: Gpus, torch: TorchBuild, engine: str) -> int | None:
    """Print the reason why GPUs cannot be measured, and return its exit code; None without one."""
    faults = [line for line in gpu_findings(gpus, torch, 0.9) if line.state == "fault"]
    software = build_finding(torch, engine)
    if software.state != "ok":
        faults.append(software)
    if not faults:
        return None
    print(f"{'skipped' if gpus.absent else 'fault'}: {faults[0].sentence}")
    return 0 if gpus.absent else 2


def main() -> int:
    """Measure; print and write the figures. Return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a test's size")
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    if options.device == "cuda":
        ended = gpu_status(read_gpus(), torch_build(), engine_build())
        if ended is not None:
            return ended
    # DeepSpeed looks for ninja on the PATH.
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ |= {"PATH": programs, "PYTHONPATH": str(HERE.parent)}
    began = time.monotonic()
    around = machine()
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            folder=Path(folder), device=options.device, size=TINY if options.tiny else LARGE
        )
        rows = []
        for row in measure(setup, options.parts, began + 60 * options.minutes):
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    seconds = time.monotonic() - began
    print(f"\n{table(rows)}\n{seconds / 60:.1f} minutes")
    if options.out:
        record = {
            "machine": around,
            "device": options.device,
            "tiny": options.tiny,
            "seconds": round(seconds),
            "rows": [{**asdict(row), "bar_held": row.verdict} for row in rows],
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
