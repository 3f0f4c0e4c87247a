"""Engines of several cases, one after another: `python -m tests.support.vllm_cases PLAN`.

PLAN is a JSON list of cases, each with the name of a function here, its arguments, and `out`, the
file of its result. One process imports vLLM and forks one process for each engine, as an engine
ends with its process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from tests.support.engine_cases import fork

MODULES = (
    "transformers",
    "ssd_ray.inference.vllm.engine",
    "ssd_ray.inference.vllm.sampler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
)
"""Loaded before the forks; they start no thread."""


def run_cases(folder: Path, cases: dict[str, dict[str, Any]], cpus: int) -> dict[str, Any]:
    """Run cases by name, each on an engine with `cpus` threads; return their results."""
    from ssd_ray.inference.vllm.arguments import engine_environment

    plan = folder / "plan.json"
    files = {name: folder / f"{number}.json" for number, name in enumerate(cases)}
    plan.write_text(json.dumps([{**case, "out": str(files[n])} for n, case in cases.items()]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm_cases", str(plan)],
        cwd=Path(__file__).parents[2],
        env=os.environ | engine_environment(EngineConfig(cpus=cpus), "cpu"),
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def greedy(directory: str) -> Any:
    """Draw three answers greedily."""
    from ssd_ray.inference.vllm.engine import Engine, Request

    model = ModelConfig(source=directory, dtype="float32", max_model_len=256)
    knobs = EngineConfig(enforce_eager=True, kv_cache_gib=0.1, max_num_seqs=4)
    engine = Engine(Path(directory), model=model, engine=knobs, device="cpu")
    prompts = [tuple(range(3 + number, 20 + 3 * number)) for number in range(3)]
    decoding = Decoding(temperature=0)
    futures = [
        engine.submit(Request(prompt_token_ids=prompt, seed=0, decoding=decoding, max_tokens=24))
        for prompt in prompts
    ]
    answers = [future.result().output_token_ids for future in futures]
    engine.close()
    return list(zip(prompts, answers, strict=True))


def sums_of_counters() -> dict[str, float]:
    """Return the sums of all counters of Ray's metrics in this process, from now on."""
    from ray.util.metrics import Counter

    sums: dict[str, float] = {}
    increase = Counter.inc

    def note(counter: Any, value: float = 1.0, tags: Any = None) -> None:
        name = counter.info["name"]
        sums[name] = sums.get(name, 0.0) + value
        increase(counter, value, tags)

    Counter.inc = note
    return sums


class Draws:
    """An engine and its draws; call the methods in their order.

    With `metrics`, it publishes vLLM's own, and `published` holds their sums by name.
    """

    def __init__(
        self, directory: str, sampler: str, end_tokens: list[str | int], metrics: bool
    ) -> None:
        from ssd_ray.inference.vllm.engine import Engine

        self.published = sums_of_counters() if metrics else {}

        model = ModelConfig(
            source=directory, dtype="float32", max_model_len=256, end_tokens=tuple(end_tokens)
        )
        knobs = EngineConfig(
            enforce_eager=True,
            kv_cache_gib=0.25,
            max_num_seqs=128,
            sampler=sampler,
            metrics=metrics,
        )
        self.usual: dict[str, Any] = {
            "decoding": Decoding(temperature=1.5, top_k=3, top_p=0.9),
            "max_tokens": 64,
        }
        self.prompts = [tuple(range(3 + number, 30 + 2 * number)) for number in range(12)]
        self.engine = Engine(Path(directory), model=model, engine=knobs, device="cpu")

    def submit(self, prompt: tuple[int, ...], seed: int, **more: Any) -> Any:
        """Queue a request with the usual decoding."""
        from ssd_ray.inference.vllm.engine import Request

        return self.engine.submit(
            Request(prompt_token_ids=prompt, seed=seed, **{**self.usual, **more})
        )

    def answers(self, numbers: list[int]) -> list[Any]:
        """Draw answers to the numbered prompts together; return ids, text and finish reason."""
        from ssd_ray.inference.vllm.engine import sample_seed

        futures = [self.submit(self.prompts[n], sample_seed(1, f"p{n}", 0)) for n in numbers]
        answers = [future.result() for future in futures]
        return [[list(each.output_token_ids), each.text, each.finish_reason] for each in answers]

    def long(self) -> list[Any]:
        """Return length and finish reason of an answer near the end of the context."""
        answer = self.submit((9,) * 250, 3).result()
        return [len(answer.output_token_ids), answer.finish_reason]

    def counts(self) -> dict[str, Any]:
        """Return the engine's counts of tokens while answers of two jobs are in flight."""
        from ssd_ray.inference.vllm import engine as engine_module

        engine = self.engine
        before, engine_module._COUNT_PERIOD_S = sum(engine.tokens_drawn.values()), 0.0
        counts = []
        futures = [self.submit(self.prompts[n], n, job=str(n % 2)) for n in range(12)]
        while not all(future.done() for future in futures):
            counts.append(sum(engine.tokens_drawn.values()))
            time.sleep(0.001)
        time.sleep(0.2)  # the last count follows the last answer
        counts.append(sum(engine.tokens_drawn.values()))
        return {
            "before": before,
            "counts": counts,
            "lengths": [len(future.result().output_token_ids) for future in futures],
            "by_job": dict(engine.tokens_drawn),
        }

    def refusal(self, prompt: tuple[int, ...]) -> str:
        """Return the message of a refusal, or the answer."""
        from ssd_ray.inference.vllm.engine import RefusedRequestError

        try:
            return repr(self.submit(prompt, 3).result())
        except RefusedRequestError as error:
            return str(error)

    def first_tokens(
        self, prompt: tuple[int, ...], decodings: list[list[Any]], draws: int
    ) -> list[list[int]]:
        """Return the first tokens of `draws` answers to a prompt, a list for each decoding."""
        from ssd_ray.inference.vllm.engine import sample_seed

        chosen = [Decoding(temperature=t, top_k=k, top_p=p) for t, k, p in decodings]
        futures = [
            [
                self.submit(prompt, sample_seed(i, "draw", number), decoding=decoding)
                for i, decoding in enumerate(chosen)
            ]
            for number in range(draws)
        ]
        columns = zip(*futures, strict=True)
        return [[future.result().output_token_ids[0] for future in column] for column in columns]


def everything(
    directory: str,
    sampler: str,
    end_tokens: list[str | int],
    decodings: list[list[Any]],
    draws: int,
    metrics: bool = False,
) -> dict[str, Any]:
    """Return all draws of one engine: together, alone, long, in two jobs, refused, first tokens."""
    drawn = Draws(directory, sampler, end_tokens, metrics)
    together = drawn.answers(list(range(12)))
    alone = [drawn.answers([number])[0] for number in (0, 5, 11)]
    long = drawn.long()
    counts = drawn.counts()
    refused = [drawn.refusal(prompt) for prompt in ((9,) * 256, (), (5, 10**6))]
    # Room for one token.
    prompt = drawn.prompts[4] + (9,) * (255 - len(drawn.prompts[4]))
    first_tokens = drawn.first_tokens(prompt, decodings, draws)
    drawn.engine.close()
    totals = {"drawn": sum(drawn.engine.tokens_drawn.values()), "published": drawn.published}
    return (
        counts
        | totals
        | {
            "prompts": drawn.prompts,
            "together": together,
            "alone": alone,
            "long": long,
            "refused": refused,
            "prompt": prompt,
            "draws": first_tokens,
        }
    )


FUNCTIONS = {"greedy": greedy, "everything": everything}


def run_case(case: dict[str, Any]) -> None:
    """Run one case and write its result."""
    function, out = FUNCTIONS[case.pop("function")], Path(case.pop("out"))
    out.write_text(json.dumps(function(**case)))


def main(plan: str) -> None:
    """Fork and await one process for each case."""
    gc.disable()
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    for case in json.loads(Path(plan).read_text()):
        _, status = os.waitpid(fork(partial(run_case, case)), 0)
        if status:
            sys.exit(f"the engine of {case} ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1])
