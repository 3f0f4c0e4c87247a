"""Concurrent calls to an engine: bounded, exclusive on request, and refused after closing."""

from __future__ import annotations

import threading
import time

from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock


def test_exclusive_access_admits_one_caller() -> None:
    gate, inside, most = SharedExclusiveLock(), [], []

    def work(alone: bool) -> None:
        with gate.exclusive() if alone else gate.shared():
            inside.append(alone)
            most.append(list(inside))
            threading.Event().wait(0.005)
            inside.remove(alone)

    threads = [threading.Thread(target=work, args=(number % 5 == 0,)) for number in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 25
    assert all(len(held) == 1 for held in most if True in held)


def test_waiting_calls_end_at_once_when_the_limiter_closes() -> None:
    calls, began, end = ConcurrencyLimiter(2), list[tuple[int, bool]](), threading.Event()

    def call(number: int) -> None:
        with calls.inside(), calls.one() as came:
            began.append((number, came))
            if came:
                end.wait(60)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    assert began == [(0, True), (1, True)]
    calls.close()
    for thread in threads[2:]:
        thread.join(5)
        assert not thread.is_alive()
    assert sorted(began) == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    end.set()
    calls.wait_for_work()
    calls.wait_for_all()


def test_a_finished_call_admits_the_next() -> None:
    calls, began = ConcurrencyLimiter(1), list[int]()
    with calls.one():
        threads = []
        for number in range(3):
            threads.append(
                threading.Thread(target=lambda number=number: _begin(calls, began, number))
            )
            threads[-1].start()
            time.sleep(0.02)
    for thread in threads:
        thread.join(10)
    assert sorted(began) == [0, 1, 2]


def _begin(calls: ConcurrencyLimiter, began: list[int], number: int) -> None:
    with calls.one() as came:
        assert came
        began.append(number)


def test_a_call_gives_its_place_to_the_next_before_it_ends() -> None:
    """So a shard is written while the next unit is drawn."""
    calls, written, ended = ConcurrencyLimiter(1), threading.Event(), list[int]()

    def call(number: int) -> None:
        with calls.inside():
            with calls.one():
                pass
            written.wait(60)
            ended.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    calls.wait_for_work()
    waiting = threading.Thread(target=calls.wait_for_all)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    written.set()
    waiting.join(5)
    assert sorted(ended) == [0, 1, 2]
