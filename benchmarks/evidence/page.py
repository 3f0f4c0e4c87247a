r"""Write docs/results.md from the figures of benchmarks/evidence/data.

    python benchmarks/evidence/page.py

The rules of each verdict are in this file, and were committed before the first figures were.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
PAGE = ROOT / "docs" / "results.md"

Figures = dict[str, Any]
Span = Sequence[float]
"""Estimate, low and high end of an interval."""

HOLDS, FAILS, UNKNOWN = "holds", "fails", "cannot tell"
SMALL_SHARE = 0.5
"""The control may change at most this share of the tokens that SSD changes."""
EXACT_NATS = 0.05
"""Widest half of an interval that still tells an identity of the loss."""
T_EFF_TOLERANCE = 0.1
"""Relative distance to T_train T_eval within which the product is reached."""
PAPER_WITHOUT_PROGRAM = 0.62


def percent(value: Span, digits: int = 1) -> str:
    """Return a share with its interval."""
    estimate, low, high = (f"{100 * each:.{digits}f}" for each in value)
    return f"{estimate} % ({low} to {high})".replace("-", "−")


def number(value: Span, digits: int = 3, unit: str = "") -> str:
    """Return a number with its interval."""
    estimate, low, high = (f"{each:.{digits}f}" for each in value)
    return f"{estimate}{unit} ({low} to {high})".replace("-", "−")


def sign(value: Span) -> str:
    """Judge a claimed rise: above zero, below it, or neither."""
    return HOLDS if value[1] > 0 else FAILS if value[2] < 0 else UNKNOWN


def smaller(control: Span, other: Span) -> str:
    """Judge whether a control changes less than `SMALL_SHARE` of what another student does."""
    if control[2] < SMALL_SHARE * other[1]:
        return HOLDS
    return FAILS if control[1] > SMALL_SHARE * other[2] else UNKNOWN


def identity(difference: Span) -> str:
    """Judge an identity from the interval of its difference."""
    if not difference[1] <= 0 <= difference[2]:
        return FAILS
    return HOLDS if difference[2] - difference[1] < 2 * EXACT_NATS else UNKNOWN


def near(value: Span, goal: float) -> str:
    """Judge whether a temperature is within `T_EFF_TOLERANCE` of a goal."""
    low, high = goal * (1 - T_EFF_TOLERANCE), goal * (1 + T_EFF_TOLERANCE)
    if low <= value[1] and value[2] <= high:
        return HOLDS
    return FAILS if value[2] < low or value[1] > high else UNKNOWN


def explained(share: Span) -> str:
    """Judge the claim that decoding alone does not give the change of a student."""
    return HOLDS if share[2] < 0.5 else FAILS if share[1] > 0.9 else UNKNOWN


def proportion(part: int, whole: int) -> Span:
    """Return a share of answers with its Clopper-Pearson interval."""
    ends = stats.binomtest(part, whole).proportion_ci(0.95)
    return part / whole, ends.low, ends.high


def label(name: str, figures: Figures) -> str:
    """Return the arm that samples of a setting make."""
    own = figures["loss"][-1]["setting"]["temperature"]
    cut = "_k=" in name or "_p=" in name
    temperature = float(name.partition("_")[0].removeprefix("T="))
    if cut:
        return "compression" if temperature == 1 else f"SSD, T {temperature:g}"
    if temperature == 1:
        return "naive"
    return "reshaping" if temperature == own else "bad data"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def claims(figures: Figures) -> Iterator[list[str]]:
    """Yield the rows of the table of claims: claim, figure, verdict."""
    by_name = {each["name"]: each for each in figures["students"]}
    ssd = figures["students"][0]
    naive = by_name["T=1"]
    yield [
        "Fixed point: samples at T 1 without truncation teach nothing (Eq. 9)",
        f"naive changes {percent(naive['tokens_changed'])} of the tokens, "
        f"SSD {percent(ssd['tokens_changed'])}",
        smaller(naive["tokens_changed"], ssd["tokens_changed"]),
    ]
    for each in figures["loss"]:
        setting = each["setting"]
        yield [
            f"The loss of samples at T {setting['temperature']:g} is that of Eq. 15",
            f"drawn − expected {number(each['difference'], 4)} nats, {each['positions']:,} tokens",
            identity(each["difference"]),
        ]
    for domain, signals in ssd["signals"].items():
        if domain == "all":
            continue
        yield [
            f"Training removes the tail of locks ({domain})",
            f"mass of S at locks {percent(signals['lock_sharpening'], 2)} points",
            sign(signals["lock_sharpening"]),
        ]
        yield [
            f"Training spreads the head of forks ({domain})",
            f"entropy within S {number(signals['fork_spreading'])} nats",
            sign(signals["fork_spreading"]),
        ]
    for name, student in figures["own"].items():
        signals = student["signals"]["all"]
        goal = float(name.partition("_")[0].removeprefix("T="))
        yield [
            f"The student has the temperature of its samples, T {goal:g}",
            f"T {number(signals['temperature_reached'])}, "
            f"gap closed {percent(signals['gap_closed'])}",
            near(signals["temperature_reached"], goal),
        ]
    yield [
        "No decoding of the base gives what SSD gives",
        f"decoding gives {percent(ssd['tokens_explained'])} of the changed tokens",
        explained(ssd["tokens_explained"]),
    ]
    bad = figures["samples"]["T=2"]
    share = proportion(bad["without_program"], bad["answers"])
    yield [
        "Samples at T 2 without truncation have no program in 62 %",
        f"{percent(share)} of {bad['answers']} samples",
        HOLDS
        if share[1] <= PAPER_WITHOUT_PROGRAM <= share[2]
        else "another share, of another model",
    ]
    yield ["Such samples still raise pass@1", "not measured", UNKNOWN]
    yield ["pass@1 and pass@5 rise over the base at its best", "not measured", UNKNOWN]


def arms(figures: Figures) -> Iterator[list[str]]:
    """Yield a row for each student, all measured on the same answers."""
    for student in figures["students"]:
        signals = student["signals"]["all"]
        yield [
            label(student["name"], figures),
            f"`{student['name']}`",
            percent(signals["gap_closed"]),
            number(signals["temperature_reached"]),
            percent(signals["tail_removed"]),
            number(signals["fork_spreading"]),
            percent(student["tokens_changed"]),
            percent(student["tokens_explained"], 0),
        ]


def products(figures: Figures) -> Iterator[list[str]]:
    """Yield a row for each T_train and T_eval: the product and the temperature in effect."""
    for cell in figures["sweeps"]["truncated"]:
        measured = cell["values"].get("effective temperature")
        if measured is None or cell["t_train"] is None:
            continue
        goal = cell["t_train"] * cell["t_eval"]
        yield [
            label(cell["row"], figures),
            f"{cell['t_eval']:g}",
            f"{goal:g}",
            number(measured),
            near(measured, goal),
        ]


def model_part(name: str, figures: Figures) -> Iterator[str]:
    """Yield the lines of one model."""
    train, machine = figures["train"], figures["machine"]
    samples = max(each["answers"] for each in figures["samples"].values())
    recipe = f"benchmarks/evidence/{name}.yaml"
    yield f"## {name}"
    yield ""
    yield (
        f"{samples} samples a student, {train['heldout_samples']} of them held out; "
        f"{train['steps']} steps of {train['global_batch_size']} sequences at learning rate "
        f"{train['learning_rate']:g}, all weights in float32."
    )
    yield f"Measured on {figures['measured']}: {machine['cpu']}, {machine['cores_usable']} cores."
    yield ""
    yield f"    python benchmarks/evidence/distributions.py {recipe} --out build/evidence/{name} \\"
    yield "      --other gsm8k_test.jsonl"
    yield f"    python benchmarks/evidence/collect.py build/evidence/{name} \\"
    yield f"      --out benchmarks/evidence/data/{name}.json"
    yield ""
    yield from _table(["claim", "figure", "verdict"], list(claims(figures)))
    yield "### The arms on the same answers"
    yield ""
    columns = ["arm", "samples", "gap closed", "T reached", "tail removed", "fork spreading"]
    columns += ["tokens changed", "by decoding"]
    yield from _table(columns, list(arms(figures)))
    yield "### T_eff at the level of distributions"
    yield ""
    columns = ["student", "T_eval", "T_train T_eval", "T in effect", "product reached"]
    yield from _table(columns, list(products(figures)))


def page(data: Path = DATA) -> str:
    """Return the text of docs/results.md."""
    every = {path.stem: json.loads(path.read_text()) for path in sorted(data.glob("*.json"))}
    lines = [line for name, figures in every.items() for line in model_part(name, figures)]
    head = (Path(__file__).parent / "results_head.md").read_text()
    return head + "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page, or compare it with the committed one."""
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text() == page() else f"{PAGE} is not what the figures give")
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
