"""Finished answers on slow storage: steps go on, a queue is bounded, no answer is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssd_ray.artifacts.ledger import Span
from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from ssd_ray.errors import UserError
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.drawing import Drawing
from ssd_ray.inference.vllm import delivery
from ssd_ray.inference.vllm import engine as engine_module
from ssd_ray.inference.vllm.engine import Answer, Engine, Request
from ssd_ray.inference.work import journal
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.work.unit import WorkUnit
from ssd_ray.schema import Prompt
from tests.support.doubles import InstantEngine

PATIENCE_S = 20


class Steps:
    """A double of vLLM's engine: each request ends after as many steps as it may have tokens."""

    def __init__(self) -> None:
        self.count = 0
        self.made_with: dict[str, Any] = {}
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self._ends: dict[str, int] = {}

    def add_request(self, request_id: str, prompt: object, params: Any) -> None:
        """Take a request."""
        self._ends[request_id] = self.count + params.max_tokens

    def step(self) -> list[Any]:
        """Return the answers that end with this step."""
        time.sleep(0.001)
        self.count += 1
        ended = [name for name, end in self._ends.items() if end <= self.count]
        for name in ended:
            del self._ends[name]
        completion = SimpleNamespace(token_ids=[5, 6, 7], finish_reason="length")
        return [
            SimpleNamespace(finished=True, request_id=name, outputs=[completion]) for name in ended
        ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    from vllm.v1.engine.llm_engine import LLMEngine

    double = Steps()

    def make(arguments: Any, **choices: Any) -> Steps:
        double.made_with = choices
        return double

    monkeypatch.setattr(LLMEngine, "from_engine_args", make)
    return double


@pytest.fixture
def start(tiny_llama: Path, steps: Steps) -> Iterator[Callable[..., Engine]]:
    """Start engines, and close them at the end."""
    started = []

    def make(**options: Any) -> Engine:
        model = ModelConfig(source=str(tiny_llama), max_model_len=256)
        engine = Engine(tiny_llama, model=model, engine=EngineConfig(**options), device="cpu")
        started.append(engine)
        return engine

    yield make
    for engine in started:
        engine.close()


def _request(tokens: int) -> Request:
    return Request(prompt_token_ids=(3, 4), seed=1, decoding=Decoding(), max_tokens=tokens)


def _eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


@pytest.mark.slow
def test_steps_go_on_while_an_answer_is_written(start: Callable[..., Engine], steps: Steps) -> None:
    engine, written = start(), threading.Event()
    engine.submit(_request(1)).add_done_callback(lambda _: written.wait(PATIENCE_S))
    last = engine.submit(_request(100))
    assert _eventually(lambda: steps.count >= 100)
    assert not written.is_set()
    written.set()
    assert last.result(PATIENCE_S).output_token_ids == (5, 6, 7)


def test_an_engine_has_the_token_budget_of_offline_use(
    start: Callable[..., Engine], steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine import arg_utils

    start()
    context = steps.made_with["usage_context"]
    gpu = SimpleNamespace(
        get_device_total_memory=lambda: 80 << 30,
        get_device_name=lambda: "NVIDIA H100 80GB HBM3",
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", gpu)
    tokens, _ = arg_utils.EngineArgs.get_batch_defaults(1)
    assert tokens[context] == 16384


def test_the_queue_of_answers_is_bounded_and_loses_none(
    start: Callable[..., Engine], steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MOST_WAITING", 2)
    monkeypatch.setattr(delivery, "_NUM_THREADS", 1)
    engine, written, answered = start(), threading.Event(), list[int]()
    for tokens in range(1, 40, 2):

        def write(_: Future[Answer], tokens: int = tokens) -> None:
            written.wait(PATIENCE_S)
            answered.append(tokens)

        engine.submit(_request(tokens)).add_done_callback(write)
    time.sleep(0.5)
    # One is being written, two are in the queue, and the step of the fourth waits.
    assert steps.count < 20
    written.set()
    assert _eventually(lambda: answered == list(range(1, 40, 2)))


def test_several_answers_are_written_at_a_time() -> None:
    together = threading.Barrier(delivery._NUM_THREADS)
    places: list[int] = []
    answers = delivery.Delivery[int](lambda _: places.append(together.wait(PATIENCE_S)))
    for number in range(2 * delivery._NUM_THREADS):
        answers.put(number)
    answers.close()
    assert sorted(places) == sorted([*range(delivery._NUM_THREADS)] * 2)
    assert time.monotonic() - answers.moved < PATIENCE_S


@pytest.mark.slow
def test_storage_that_hangs_ends_the_engine(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    hung = threading.Event()
    monkeypatch.setattr(engine_module, "end_process", reasons.append)
    engine = start(stall_s=4)
    time.sleep(6)
    assert not reasons, "an idle engine is not stalled"
    engine.submit(_request(1)).add_done_callback(lambda _: hung.wait(PATIENCE_S))
    try:
        assert _eventually(lambda: bool(reasons))
    finally:
        hung.set()
    assert set(reasons) == {"nothing came back for 4 s (engine.stall_s)"}


class SlowFile:
    """The file of a heartbeat; each write waits until `written` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.written = threading.Event()
        self.count = 0
        put = heartbeat._put

        def slow(*arguments: Any) -> None:
            self.count += 1
            self.begun.set()
            self.written.wait(PATIENCE_S)
            put(*arguments)

        monkeypatch.setattr(heartbeat, "_put", slow)


def test_answers_are_counted_while_the_status_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Reporter(tmp_path, "a")
    file = SlowFile(monkeypatch)
    writing = threading.Thread(target=report.become, args=("ready",))
    writing.start()
    assert file.begun.wait(PATIENCE_S)
    counting = threading.Thread(target=report.answered, args=("job", 7))
    counting.start()
    counting.join(5)
    was_counted = not counting.is_alive()
    file.written.set()
    writing.join()
    counting.join()
    assert was_counted
    report.become("draining")
    (status,) = heartbeat.read(tmp_path)
    assert (status.state, status.rows, status.tokens) == ("draining", 1, 7)


def test_changes_during_a_write_share_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "PERIOD_S", 3600)
    report = Reporter(tmp_path, "a")
    file = SlowFile(monkeypatch)
    threads = [threading.Thread(target=report.recorded, args=("job", 1)) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert file.begun.wait(PATIENCE_S)
    time.sleep(0.2)
    file.written.set()
    for thread in threads:
        thread.join()
    (status,) = heartbeat.read(tmp_path)
    assert status.failed == 20
    assert file.count == 2


def test_a_journal_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".journal").mkdir()
    own = journal.Journal(tmp_path, Span("p", 0, 9), "a")
    opened: list[Any] = []
    real_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more: (opened.append(path), real_open(path, *more))[1]
    )
    answer = Answer(output_token_ids=(1,), text="a", finish_reason="stop")
    for position in range(9):
        own.append(position, answer)
        assert len(journal.recover(tmp_path, Span("p", 0, 9))) == position + 1
    monkeypatch.undo()
    assert len(opened) == 1
    own.close()
    assert len(journal.recover(tmp_path, Span("p", 0, 9))) == 9


def _drawing(out: Path) -> Drawing:
    prompt = Prompt(prompt_id="p", source="s", difficulty="d", text="t", token_ids=(1, 2))
    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=out,
        out=out,
        samples=2,
        seed=1,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=2,
    )
    span = Span("prompts-0", 0, 2)
    unit = WorkUnit(span, {0: prompt, 1: prompt}, 2, {})
    report = Reporter(out / "control", "a")
    return Drawing(engine=InstantEngine(0.01), report=report, job=job, unit=unit)


def test_an_answer_counts_once_it_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = _drawing(tmp_path)
    append = journal.Journal.append

    def slow(self: journal.Journal, position: int, answer: Answer) -> None:
        time.sleep(0.3)
        append(self, position, answer)

    monkeypatch.setattr(journal.Journal, "append", slow)
    drawing.answer(list(drawing.unit.missing()))
    assert journal.recover(tmp_path, drawing.unit.span) == drawing.unit.answers
    assert len(drawing.unit.answers) == 2


def test_an_answer_that_cannot_be_journaled_ends_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    drawing = _drawing(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*\.journal.*make room"):
        drawing.answer(list(drawing.unit.missing()))
