"""Prompts of problems, as one text and the token ids used by every later stage.

- Modes `paper`, `chat`, `release-eval` and `published` apply the model's chat template to their
  messages.
- Mode `release` is the raw text of the authors' released script.
- Training and evaluation share one function.

Writes Prompt rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssd_ray.artifacts import shards
from ssd_ray.artifacts.problem_facts import EvalPromptFacts
from ssd_ray.errors import UserError
from ssd_ray.problems.chat_template import ChatTemplate, Clock
from ssd_ray.problems.published_prompts import Messages, published, released_evaluation
from ssd_ray.problems.renderer import Renderer
from ssd_ray.schema import Problem, Prompt

Mode = Literal["paper", "chat", "release", "release-eval", "published"]
OverLength = Literal["error", "skip", "truncate-left"]
SHARD_ROWS = 1024

# The text of apple/ml-ssd at its commit of 2026-04-16. Its sentences are those of LiveCodeBench's
# prompt (MIT).
_RELEASE_HEAD = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests. You will NOT return anything "
    "except for the program.\n\nQuestion: {statement}\n\n"
)
_RELEASE_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
    "\n\nThe final solution should be formatted as:\n"
    "```python\n# YOUR CODE HERE\n```"
)
_RELEASE_FUNCTION = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters.\n```python\n{starter_code}\n```"
)


def user_message(problem: Problem) -> str:
    """Return the user message of modes `paper` and `chat`.

    It holds the statement, and explains how the program is called.
    """
    statement = problem.statement.strip()
    if problem.kind == "numeric":
        return f"{statement}\n\nEnd with the answer, one number, in \\boxed{{}}."
    if problem.kind == "stdin":
        return (
            f"{statement}\n\n"
            "The program reads standard input and writes the answer to standard output."
        )
    # HumanEval and HumanEval+: the statement is the beginning of the function.
    if problem.kind == "asserts" and problem.starter_code:
        return _complete(problem)
    if problem.comparison.startswith("evalplus") and f"def {problem.entry_point}(" in statement:
        return _complete(problem)
    if problem.starter_code:
        return (
            f"{statement}\n\nStart from this code:\n```python\n{problem.starter_code.rstrip()}\n```"
        )
    owner, is_method, method = (problem.entry_point or "").partition("().")
    if is_method:
        return (
            f"{statement}\n\nName the class `{owner}` and its method `{method}`. "
            "Give the whole class with its imports."
        )
    return f"{statement}\n\nName the function `{owner}`. Give the whole function with its imports."


def _complete(problem: Problem) -> str:
    return (
        "Complete this function. Give the whole function with its imports.\n\n"
        f"```python\n{problem.statement.rstrip()}\n```"
    )


def messages(problem: Problem, mode: Mode, system_message: str) -> Messages:
    """Return the chat messages of a problem in a mode other than `release`.

    Mode `paper` adds the system message, which asks for a program, unless the answer is a number.

    Raises:
        UserError: Mode `release-eval` has no words for the problem.
    """
    if mode == "published":
        return published(problem)
    if mode == "release-eval":
        return released_evaluation(problem)
    user = {"role": "user", "content": user_message(problem)}
    if mode == "paper" and problem.kind != "numeric":
        return [{"role": "system", "content": system_message}, user]
    return [user]


def release_text(problem: Problem) -> str:
    """Return the raw text of mode `release`, from the two templates of the authors' script.

    Problems without words in that script are written as in mode `chat`: a function to complete, a
    number to find.
    """
    if problem.kind in ("asserts", "numeric"):
        return user_message(problem)
    head = _RELEASE_HEAD.replace("{statement}", problem.statement)
    if problem.starter_code and problem.starter_code.strip():
        return head + _RELEASE_FUNCTION.replace("{starter_code}", problem.starter_code)
    return head + _RELEASE_STDIN


def renderer(
    tokenizer: Any,
    mode: Mode,
    system_message: str,
    template_arguments: Mapping[str, object],
    *,
    field: str,
    clock: Clock | None = None,
) -> Renderer:
    """Return the renderer of a mode.

    `field` is the recipe field with the mode, for error messages.

    Raises:
        UserError: As for `ChatTemplate`, or mode `release` with a tokenizer that changes a text
            when it adds tokens to it.
    """
    if mode == "release":
        return Renderer(
            tokenizer, lambda problem: [{"role": "user", "content": release_text(problem)}], None
        )
    template = ChatTemplate(tokenizer, template_arguments, clock or Clock(), mode=mode, field=field)
    return Renderer(tokenizer, lambda problem: messages(problem, mode, system_message), template)


@dataclass(frozen=True, kw_only=True)
class ContextBudget:
    """Number of tokens for a prompt and its answer, and the policy for prompts without room.

    `truncate-left` keeps the end of the prompt's ids, so that `answer_tokens` fit after it, at most
    half of the context. The text of the prompt stays complete, for a reader.
    """

    max_model_len: int
    answer_tokens: int = 1
    over_length: OverLength = "error"

    def fit(self, name: str, token_ids: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the ids to keep, or None to leave the prompt out.

        Raises:
            UserError: The prompt leaves no room for one token of an answer, under policy `error`.
        """
        if len(token_ids) < self.max_model_len:
            return token_ids
        if self.over_length == "error":
            raise UserError(
                f"prompt {name} has {len(token_ids)} tokens and model.max_model_len "
                f"{self.max_model_len} must hold it and an answer: raise it, leave the problem "
                "out, or set prompts.over_length to skip or truncate-left (training prompts)"
            )
        if self.over_length == "skip":
            return None
        # Half of the context at most: a large sample.max_tokens would leave no prompt.
        kept = self.max_model_len - max(1, min(self.answer_tokens, self.max_model_len // 2))
        return token_ids[-kept:]


def render(
    problems: Iterable[Problem],
    render_prompt: Callable[[Problem], tuple[str, tuple[int, ...]]],
    budget: ContextBudget,
    *,
    out: Path,
) -> EvalPromptFacts:
    """Write the prompts of `problems` as shards; return their counts.

    Raises:
        UserError: As for `renderer` and `ContextBudget.fit`, or no prompt is left.
    """
    rows: list[Prompt] = []
    lengths: list[int] = []
    skipped = 0
    truncated = 0
    for problem in problems:
        text, token_ids = render_prompt(problem)
        kept = budget.fit(problem.problem_id, token_ids)
        if kept is None:
            skipped += 1
            continue
        truncated += len(kept) < len(token_ids)
        rows.append(
            Prompt(
                prompt_id=problem.problem_id,
                source=problem.source,
                difficulty=problem.difficulty,
                text=text,
                token_ids=kept,
                statement=problem.statement,
            )
        )
        lengths.append(len(kept))
        if len(rows) == SHARD_ROWS:
            _flush(out, rows, len(lengths))
    if rows:
        _flush(out, rows, len(lengths))
    if not lengths and skipped:
        raise UserError(
            f"all {skipped} prompts are too long for model.max_model_len "
            f"{budget.max_model_len}: raise it"
        )
    return EvalPromptFacts(
        rows=len(lengths),
        tokens=sum(lengths),
        longest=max(lengths, default=0),
        skipped=skipped,
        truncated=truncated,
    )


def _flush(out: Path, rows: list[Prompt], end: int) -> None:
    shards.write_shard(out, f"prompts-{end - len(rows):08}", rows, Prompt)
    rows.clear()
