r"""Train the students of a recipe and measure their distributions.

    python benchmarks/evidence/distributions.py benchmarks/evidence/smollm2-135m.yaml \
        --out build/evidence/smollm2 [--other gsm8k.jsonl] [--set KEY=VALUE ...]

It runs these commands and stops at the first that fails. Each resumes, so the same command goes on:

| step | command |
|---|---|
| SSD, compression, naive | `ssd-ray sweep --measure probe`, truncation of the recipe |
| reshaping, bad data | the same without truncation, in the same directory |
| all students on the same answers | `ssd-ray probe`, S of the recipe's own samples |
| Eq. 15 on answers of each setting | `ssd-ray probe` of the base on held-out samples |

`collect.py` takes the figures out of the directory.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from ssd_ray import recipes
from ssd_ray.config import Recipe

T_TRAIN = (0.7, 1.0)
"""Further temperatures of the truncated samples; the one at T 1 is compression."""
BAD_DATA = 2.0
T_EVAL = (0.5, 0.75, 1.0, 1.5)
LIMIT = 64
"""Answers of each place in a probe."""


def setting(temperature: float, top_k: int | None, top_p: float) -> str:
    """Return the name that a sweep gives to samples."""
    parts = [f"T={temperature:g}"]
    if top_k is not None:
        parts.append(f"k={top_k}")
    if top_p < 1:
        parts.append(f"p={top_p:g}")
    return "_".join(parts)


def commands(recipe: Recipe, options: argparse.Namespace) -> list[list[str]]:
    """Return all commands, in their order."""
    out, sample = options.out, recipe.sample
    chosen = [each for pair in options.set for each in ("--set", pair)]
    own = ["--train-temperature", f"{sample.temperature:g}"]
    own += ["--train-top-k", f"{sample.top_k or 0}", "--train-top-p", f"{sample.top_p:g}"]
    base = str(recipe.model.source)
    students = [
        setting(temperature, sample.top_k, sample.top_p)
        for temperature in (sample.temperature, *T_TRAIN)
    ]
    students += ["T=1", setting(sample.temperature, None, 1.0), setting(BAD_DATA, None, 1.0)]
    models = [base, *(str(out / "checkpoint" / name) for name in students)]
    held_out = ["--contexts", str(out / "dataset" / "T=1")]
    places = [*held_out, "--contexts", "humaneval"]
    places += ["--contexts", str(options.other)] if options.other else []
    truncated = _listed(*T_TRAIN, sample.temperature)
    plain = [*chosen, "--set", "sample.top_k=null", "--set", "sample.top_p=1"]
    every = [
        _sweep(options, chosen, truncated),
        _sweep(options, plain, _listed(sample.temperature, BAD_DATA)),
        ["probe", *models, *places, *own, "--limit", str(LIMIT), "--out", str(out / "probe")],
    ]
    for temperature in (sample.temperature, *T_TRAIN):
        name = setting(temperature, sample.top_k, sample.top_p)
        every.append(
            [
                *("probe", base, str(out / "checkpoint" / name)),
                *("--contexts", str(out / "dataset" / name)),
                *("--train-temperature", f"{temperature:g}", *own[2:]),
                *("--out", str(out / f"probe-{name}")),
            ]
        )
    return every


def _sweep(options: argparse.Namespace, chosen: list[str], temperatures: str) -> list[str]:
    return [
        *("sweep", str(options.recipe), "--measure", "probe", *chosen, "--out", str(options.out)),
        *("--over", f"sample.temperature={temperatures}"),
        *("--over", f"evaluate.temperature={_listed(*T_EVAL)}"),
    ]


def _keep(out: Path, arguments: list[str]) -> None:
    """Keep the numbers of a sweep, since the next one in its directory replaces them."""
    name = "plain" if "sample.top_k=null" in arguments else "truncated"
    shutil.copy(out / "sweep-probe" / "sweep.json", out / f"sweep-{name}.json")


def _listed(*values: float) -> str:
    return ",".join(f"{value:g}" for value in values)


def main() -> None:
    """Run the commands, or print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, help="recipe of the model")
    parser.add_argument("--out", type=Path, required=True, help="directory of samples and students")
    parser.add_argument("--other", type=Path, help="problem file of another domain, as GSM8K")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the recipe")
    parser.add_argument("--print", action="store_true", help="print the commands and end")
    options = parser.parse_args()
    for arguments in commands(recipes.load(options.recipe, options.set), options):
        print("ssd-ray", *arguments, flush=True)
        if not options.print:
            subprocess.run([sys.executable, "-m", "ssd_ray", *arguments], check=True)
            if arguments[0] == "sweep":
                _keep(options.out, arguments)


if __name__ == "__main__":
    main()
