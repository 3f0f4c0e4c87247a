"""A run directory whose texts, names and tests are hostile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssd_ray.artifacts.shards import write_shard
from ssd_ray.evaluation.tests_on_disk import TestStore
from ssd_ray.schema import Completion, Problem, Prompt, Test, Verdict
from tests.view.hostile_texts import MARK

ARM = f"base<img src=x onerror={MARK}>"


def write_hostile_run(run: Path, texts: Sequence[str]) -> None:
    """Write one answer for each text; short texts are names, programs and details too."""
    names = [f"{text[:120]}/{number}" for number, text in enumerate(texts)]
    benchmark = run / "benchmark"
    store = TestStore(benchmark / "tests")
    tests = (Test(input=f"<script>{MARK}</script>\ud800\x00", output="\udfff</pre>"),)
    problems = [
        store.put(Problem(problem_id=name, source="evil", statement=name, tests=tests))
        for name in names
    ]
    answers, prompts, verdicts = [], [], []
    for name, text in zip(names, texts, strict=True):
        key = {"prompt_id": name, "source": f"<b>{MARK}</b>", "difficulty": "'\"><svg>"}
        prompts.append(Prompt(**key, text=text[:5000], token_ids=(1, 2), statement=text[:100]))
        answers.append(
            Completion(
                **key,
                sample_index=0,
                seed=1,
                prompt_token_ids=(1, 2),
                output_token_ids=(3, 4),
                text=text,
                finish_reason="stop",
            )
        )
        verdicts.append(
            Verdict(
                **key,
                sample_index=0,
                outcome="wrong_answer",
                num_tests=1,
                num_passed=0,
                time_s=0.1,
                code=text[:30_000],
                detail=text[:300],
                failed_test=0,
            )
        )
    for arm in (ARM, "ssd"):
        write_shard(run / "generations" / arm, "part-0", answers, Completion)
        write_shard(run / "verdicts" / arm, "part-0", verdicts, Verdict)
    write_shard(run / "eval-prompts", "part-0", prompts, Prompt)
    write_shard(benchmark, "part-0", problems, Problem)
    (run / "logs").mkdir()
    (run / "logs" / "progress.log").write_text(
        f"<script>{MARK}</script>: 1/2 rows, <img src=x onerror={MARK}>\n\x1b[2J"
    )
    (run / "recipe.yaml").write_text(f'model: {{source: "<script>{MARK}</script>"}}\n')
