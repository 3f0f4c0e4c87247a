"""What progress says of speed and time left, without a screen."""

from __future__ import annotations

import pytest

from ssd_ray.progress import LineProgress, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_time_left_is_tokens_left_over_the_speed_of_the_last_minute(clock: list[float]) -> None:
    pace = Pace(total=1000, before=0)
    for second in range(0, 201, 10):
        clock[0] = second
        # For 100 s an answer a second of 10 tokens, then ten tokens a second and an answer every ten seconds.
        done = min(second, 100) + max(0, second - 100) // 10
        pace.update(1 + done, 10 * min(second, 100) + 10 * max(0, second - 100))
    # 889 answers left, of 2000 / 110 tokens each, at 10 tokens a second.
    assert pace.figures() == "10 tok/s, 26:56 left"


def test_what_stood_there_before_is_no_speed(clock: list[float]) -> None:
    pace = Pace(total=300, before=100)
    pace.update(100, 0)
    clock[0] = 1000.0
    pace.update(101, 0)
    clock[0] = 1010.0
    pace.update(121, 0)
    assert pace.figures() == "1:30 left"


def test_a_total_may_grow(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(period_s=0).task("samples", total=0, unit="answers", done=0) as task:
        task.update(1, total=5)
        task.update(4, total=8)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["samples: 0 answers are there", "samples: 1/5 answers"]
    assert lines[2].startswith("samples: 4/8 answers")
