"""Gauges of sampling in Ray's metrics, for Prometheus, each with its stage.

docs/sampling.md lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

_GAUGES = {
    "answers": "Answers on disk or finished, failed ones included.",
    "answers_left": "Unfinished answers to the prompts rendered so far.",
    "answers_failed": "Failed answers.",
    "retries": "Answers that were requested again.",
    "seconds_left": "Answers left times their mean length, over the rate of the last minute.",
    "tokens_per_second": "Output tokens a second over the last minute, answers in flight included.",
    "engines": "Engines that drew tokens in the last minute.",
    "engine_losses": "Engine processes that crashed; their units were drawn again.",
    "prompts_left_out": "Prompts left out because they crash engines.",
}
_ENGINE_GAUGES = {
    "engine_tokens_per_second": "Output tokens a second of one engine process, last minute.",
    "engine_load_seconds": "Seconds from the start of an engine process until it could answer.",
}


class Gauges:
    """The gauges of one stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._shown: set[str] = set()
        self._loaded: dict[str, float] = {}

    def publish(self, figures: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Set the gauges; the rate of an engine without a heartbeat becomes zero."""
        for name, value in figures.items():
            _gauge(name, _GAUGES[name], ("stage",)).set(value, tags={"stage": self._stage})
        for engine, rate in {**dict.fromkeys(self._shown - rates.keys(), 0.0), **rates}.items():
            self._set("engine_tokens_per_second", engine, rate)
        self._shown = set(rates)

    def loaded(self, seconds: Mapping[str, float]) -> None:
        """Set the seconds that each engine took to load, once for each engine."""
        for engine, value in seconds.items():
            if engine not in self._loaded:
                self._set("engine_load_seconds", engine, value)
        self._loaded.update(seconds)

    def _set(self, name: str, engine: str, value: float) -> None:
        gauge = _gauge(name, _ENGINE_GAUGES[name], ("stage", "engine"))
        gauge.set(value, tags={"stage": self._stage, "engine": engine})

    def end(self) -> None:
        """Set rates, time left and seconds of loading to zero: no engine is running any more."""
        for engine in self._loaded:
            self._set("engine_load_seconds", engine, 0.0)
        self.publish(dict.fromkeys(("tokens_per_second", "engines", "seconds_left"), 0.0), {})


@functools.cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"ssd_ray_{name}", description=description, tag_keys=tags)
