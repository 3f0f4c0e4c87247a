"""Progress shows true rates, remaining times and waits, without a screen."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ssd_ray.inference import monitor
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.progress import LineProgress, LiveProgress, counted
from ssd_ray.progress.display import Display
from ssd_ray.quantities import magnitude
from ssd_ray.throughput import Remaining, Throughput


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def engine(rows: int, tokens: int, drawn: int, *, crashed: bool = False) -> EngineStatus:
    return EngineStatus(
        engine="e",
        actor="a",
        pid=1,
        state="ready",
        began=0.0,
        rows=rows,
        tokens=tokens,
        drawn=drawn,
        crashed=crashed,
    )


def test_the_rate_is_that_of_the_last_minute(now: list[float]) -> None:
    rates = Throughput()
    for second in range(0, 201, 10):
        now[0] = second
        rates.mark(second, 10 * min(second, 100) + 30 * max(0, second - 100))
    assert rates.rates == pytest.approx((1.0, 30.0))
    assert rates.working_s == 200


def test_waiting_does_not_lower_the_rate_and_is_named_at_the_end(now: list[float]) -> None:
    display = Display("samples", 48, "answers", 0)
    display.wait("starting engines")
    now[0] = 46.0
    assert display.line == "samples: 0/48 answers, 0:46, starting engines"
    display.update(0, 0)
    now[0] = 254.0
    display.update(48, 8722)
    assert (
        display.last_line
        == "samples: done, 48/48 answers in 4:14 (0:46 starting engines), mean 42 tok/s"
    )


def test_tokens_in_flight_give_a_rate_before_an_answer_ends(now: list[float]) -> None:
    display = Display("samples", 48, "answers", 0)
    display.wait("starting engines")
    now[0] = 30.0
    display.update(0, 0)
    now[0] = 34.0
    display.update(0, 400, remaining=Remaining(tokens=48 * 65_536 - 400, at_most=True))
    assert display.line == "samples: 0/48 answers, 0:34, 89 tok/s, up to about 9:49:45 left"


def test_the_last_burst_is_not_the_mean(now: list[float]) -> None:
    display = Display("samples", 10, "answers", 0)
    for second, tokens in ((100, 100), (101, 1100)):
        now[0] = second
        display.update(10, tokens)
    assert display.last_line.endswith("mean 11 tok/s")


def test_units_of_earlier_attempts_do_not_raise_the_rate(now: list[float]) -> None:
    display = Display("verdicts", 300, "verdicts", 100)
    now[0] = 10.0
    display.update(120)
    assert display.line == "verdicts: 120/300 verdicts, 0:10, 2 verdicts/s, about 1:30 left"
    assert display.last_line.endswith("mean 2 verdicts/s")


def test_steps_computed_again_give_no_negative_rate(now: list[float]) -> None:
    display = Display("train", 10, "steps", 0)
    for second, done in ((10, 5), (20, 2), (30, 3)):
        now[0] = second
        display.update(done, 100 * done)
    assert display.line == "train: 3/10 steps, 0:30, 10 tok/s, about 1:10 left"


@pytest.mark.slow
def test_lines_differ_even_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_ray.progress.lines._TICK_S", 0.02)
    lines: list[str] = []
    lines_of = LineProgress(period_s=1.0)
    monkeypatch.setattr(lines_of, "say", lines.append)
    with lines_of.task("train", 5, "steps") as task:
        task.wait("loading the model")
        time.sleep(4.2)
    assert [line.split(", ")[0] for line in lines[1:-1]] == ["train: 0/5 steps"] * (len(lines) - 2)
    assert len(lines) >= 5
    assert len(set(lines)) == len(lines)


def test_a_total_may_grow(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(period_s=0).task("samples", total=0, unit="answers", done=0) as task:
        task.update(1, total=5)
        task.update(4, total=8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "samples: 0 answers so far"
    # On a busy machine it has a rate.
    assert lines[1].startswith("samples: 1/5 answers, 0:00")
    assert lines[2].startswith("samples: 4/8 answers")
    assert lines[3].startswith("samples: done, 4/8 answers in 0:00")


def test_lines_of_several_threads_are_never_glued(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            time.sleep(0.001)
            return len(text)

    writes: list[str] = []
    monkeypatch.setattr("sys.stderr", Slow())
    lines = LineProgress()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lines.say, ["samples: 0 answers so far"] * 12))
    assert writes == ["samples: 0 answers so far\n"] * 12


def test_a_failed_stage_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), LineProgress().task("train", 5, "steps"):
        raise ValueError("no")
    assert "done" not in capsys.readouterr().err


def test_bars_take_words_in_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress().task("generations/base[x]", 2, "answers") as task:
        task.wait("starting [engines]")
        task.update(2, 50)
    error = capsys.readouterr().err
    assert "generations/base[x]" in error
    assert re.search(r"2/2 +answers", error)


def shown_bars(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    now = [0.0]
    monkeypatch.setenv("COLUMNS", str(columns))
    for module in ("progress.display", "throughput"):
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(f"ssd_ray.{module}.time", clock)
    bars = LiveProgress()
    bars._console = Console(file=io.StringIO(), force_terminal=True, width=columns)
    with (
        bars.task("generations/base", 48, "answers") as answers,
        bars.task("verdicts/ssd", 300, "verdicts") as verdicts,
        bars.task("train", 40, "steps") as train,
    ):
        for task, reason in ((answers, "starting engines"), (train, "loading the model")):
            task.wait(reason)
            now[0] += 20
        for task, units in ((answers, 48), (verdicts, 300), (train, 40)):
            task.update(0, 0)
            now[0] += 40
            task.update(units, 0 if task is verdicts else 4000, "loss 0.500")
        train.wait("exporting the model")
        now[0] += 3
    output = bars._console.file.getvalue()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


@pytest.mark.parametrize("columns", [80, 90, 100, 120, 160])
def test_bars_leave_out_parts_and_never_cut_letters(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = shown_bars(columns, monkeypatch).splitlines()[-3:]
    assert all(len(line) <= columns for line in last), last
    assert not any("…" in line for line in last), last
    assert all(re.search(r"mean \d[\d.]* (tok|verdicts)/s *$", line) for line in last), last
    if columns == 160:
        assert "(1:40 loading the model, 0:03 exporting the model), mean" in last[2]


def test_remaining_tokens_are_bounded_before_an_answer_ends() -> None:
    left = monitor._remaining([engine(0, 0, 480)], 48, 100)
    assert left == Remaining(tokens=4320, at_most=True)
    assert monitor._remaining([engine(0, 0, 480)], 48, None) is None


def test_remaining_tokens_count_answers_in_flight() -> None:
    # Ten ended after 50 tokens each, others are in flight with 500: 100 tokens an answer.
    assert monitor._remaining([engine(10, 500, 1000)], 38, 4096) == Remaining(tokens=3800)
    # A crashed engine has no answers in flight. Its drawn tokens still count.
    crashed = [engine(10, 500, 500), engine(0, 0, 100, crashed=True)]
    assert monitor._remaining(crashed, 1, 70) == Remaining(tokens=60)


def test_a_bound_below_the_estimate_is_no_bound_of_the_time() -> None:
    remaining = monitor._remaining([engine(46, 4600, 4790)], 2, 100)
    assert remaining == Remaining(tokens=10)


def test_the_work_after_the_last_unit_is_named(now: list[float]) -> None:
    display = Display("train", 10, "steps", 0)
    now[0] = 10.0
    display.update(5, 500, "loss 0.500", remaining=Remaining(tokens=500, then="saving"))
    assert display.line.endswith("50 tok/s, about 0:10 left, then saving, loss 0.500")
    display.update(10, 1000, "loss 0.500", remaining=Remaining(tokens=0, then="saving"))
    assert "left" not in display.line


@given(
    st.integers(0, 50),
    st.integers(0, 100),
    st.integers(0, 50),
    st.integers(1, 1000),
    st.integers(0, 60),
)
def test_remaining_tokens_never_exceed_the_bound(
    rows: int, mean: int, in_flight: int, most: int, left: int
) -> None:
    statuses = [engine(rows, rows * mean, rows * mean + in_flight)]
    remaining = monitor._remaining(statuses, left, most)
    assert remaining is not None
    assert 0 <= remaining.tokens <= left * most


def test_quick_steps_show_nothing_and_slow_ones_do(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = LineProgress()
    assert list(counted(range(3), lines, "prompts", "prompts")) == [0, 1, 2]
    assert capsys.readouterr().err == ""

    def slow() -> Iterator[int]:
        for number in range(5):
            now[0] += 2
            yield number

    assert list(counted(slow(), lines, "prompts", "prompts", 5)) == list(range(5))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "prompts: 1/5 prompts"
    assert last == "prompts: done, 5/5 prompts in 0:06, mean 0.67 prompts/s"
    assert list(counted([], lines, "prompts", "prompts")) == []
    assert list(counted([1], None, "prompts", "prompts")) == [1]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1250, "1.25k"), (3.4e7, "34M"), (2e12, "2T")]
)
def test_numbers_get_a_suffix_for_their_magnitude(value: float, text: str) -> None:
    assert magnitude(value) == text
    assert magnitude(3.35e9, billion="B", space=" ") == "3.35 B"
