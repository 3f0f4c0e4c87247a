"""The pictures of a report as SVG: scores, differences, outcomes, loss and cost.

Every picture shows numbers of scores.json or timings.json, and repeats them in its alt text. Pure
functions of both; a picture is None without data. Those of data health are in `health_plots`.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_ray.quantities import magnitude
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.numbers.timings import Timings
from ssd_ray.reporting.plots.canvas import (
    COLORS,
    PAPER,
    WIDTH,
    Bar,
    Picture,
    canvas,
    finish,
    short,
    style,
)
from ssd_ray.reporting.plots.dot_plots import difference_plot, difficulty_plot, score_plot
from ssd_ray.reporting.plots.held_out import (
    drift_plot,
    entropy_plot,
    likelihood_plot,
    progress_plot,
)
from ssd_ray.reporting.plots.sweep_plot import sweep_plot
from ssd_ray.reporting.words import count, duration
from ssd_ray.reporting.words import rows as row_place

OUTCOME_COLORS = {
    "accepted": "#0072B2",
    "wrong_answer": "#E69F00",
    "runtime_error": "#D55E00",
    "time_limit": "#CC79A7",
    "memory_limit": "#8A5A83",
    "output_limit": "#56B4E9",
    "no_code": "#B8BEC6",
    "wrong_block": "#8C959F",
    "infrastructure_error": "#1f2328",
}


def pictures(scores: Scores, timings: Timings) -> dict[str, Picture]:
    """Draw every figure with data, by name."""
    with style():
        drawn = (
            sweep_plot(scores),
            score_plot(scores),
            difference_plot(scores),
            difficulty_plot(scores),
            outcome_plot(scores),
            progress_plot(scores),
            loss_plot(scores),
            likelihood_plot(scores),
            drift_plot(scores),
            entropy_plot(scores),
            cost_plot(timings),
        )
    return {picture.name: picture for picture in drawn if picture is not None}


def outcome_plot(scores: Scores) -> Picture:
    """Draw the outcomes of the answers of each arm on each benchmark, as shares."""
    places = [(name, arm) for name in scores.order.benchmarks for arm in scores.order.arms]
    rows = [
        (f"{benchmark}, {arm}", scores.benchmarks[benchmark].all.arms[arm])
        for benchmark, arm in places
    ]
    # The legend names only outcomes that occurred.
    present = [name for name in OUTCOME_COLORS if any(arm.outcomes[name] for _, arm in rows)]
    figure, axes = canvas(0.95 + 0.3 * len(rows) + 0.2 * (len(present) // 3))
    lefts = [0.0] * len(rows)
    bars = []
    for name in present:
        shares = [100 * arm.outcomes[name] / max(arm.answers, 1) for _, arm in rows]
        label = name.replace("_", " ")
        axes.barh(
            range(len(rows)),
            shares,
            left=lefts,
            height=0.66,
            color=OUTCOME_COLORS[name],
            edgecolor=PAPER,
            label=label,
        )
        bars += [
            Bar(
                y=y,
                x=(lefts[y], lefts[y] + share),
                height=0.66,
                label=f"{rows[y][0]}, {label}: {rows[y][1].outcomes[name]:,} answers",
                rows=row_place(
                    "answers",
                    stage="generations",
                    arm=places[y][1],
                    benchmark=places[y][0],
                    outcome=name,
                ),
            )
            for y, share in enumerate(shares)
            if share
        ]
        lefts = [left + share for left, share in zip(lefts, shares, strict=True)]
    axes.set_yticks(range(len(rows)), [short(label) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("answers (%)")
    axes.spines["left"].set_visible(False)
    figure.legend(
        loc="outside lower center", ncols=3, fontsize=8.5, handlelength=1.0, columnspacing=1.2
    )
    values = "; ".join(
        f"{label}: " + ", ".join(f"{name} {arm.outcomes[name]}" for name in present)
        for label, arm in rows
    )
    return finish(
        "outcomes",
        figure,
        f"Stacked bars of outcomes. {values}.",
        "Outcomes of the answers of each arm.",
        bars,
    )


def loss_plot(scores: Scores) -> Picture | None:
    """Draw the training loss by step."""
    loss = scores.training.loss
    if loss is None:
        return None
    known = [
        (step, value) for step, value in zip(loss.step, loss.loss, strict=True) if value is not None
    ]
    if not known:
        return None
    steps = [step for step, _ in known]
    values = [value for _, value in known]
    figure, axes = canvas(2.4)
    # Single steps are noisy in a long run: a running mean over a twentieth of it is drawn bold.
    window = len(values) // 20 if len(values) >= 80 else 1
    axes.plot(
        steps,
        values,
        color=COLORS[1],
        linewidth=1.0 if window > 1 else 1.6,
        alpha=0.45 if window > 1 else 1.0,
    )
    if window > 1:
        means = [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
        axes.plot(steps[window - 1 :], means, color=COLORS[1], linewidth=1.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    smooth = f" (bold: mean of the last {window} steps)" if window > 1 else ""
    alt = (
        f"Line of the training loss from {values[0]:.3f} at step {steps[0]} to {values[-1]:.3f} "
        f"at step {steps[-1]}."
    )
    caption = (
        f"Training loss on the model's own answers{smooth}; "
        "a low or falling loss is no sign of a better model."
    )
    return finish("loss", figure, alt, caption)


def cost_plot(timings: Timings) -> Picture | None:
    """Draw the share of the run's time and the tokens of each stage, side by side."""
    rows = [row for row in timings.stages if row.seconds is not None]
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 0.75 + 0.24 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, values, color, title in (
        (left, [row.seconds or 0 for row in rows], COLORS[1], "share of the run's time (s)"),
        (right, [row.tokens or 0 for row in rows], COLORS[3], "tokens"),
    ):
        axes.barh(range(len(rows)), values, height=0.62, color=color)
        axes.set_xlabel(title)
        axes.set_xlim(0, max([*values, 1]) * 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(lambda value, _place: magnitude(value, digits=6))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    left.set_yticks(range(len(rows)), [short(row.stage, 22) for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)
    values_in_words = "; ".join(
        f"{row.stage}: {duration(row.seconds)}, {count(row.tokens)} tokens" for row in rows
    )
    return finish(
        "cost",
        figure,
        f"Bars of the share of the run's time and of tokens. {values_in_words}.",
        "Share of the run's time and tokens of each stage.",
    )
