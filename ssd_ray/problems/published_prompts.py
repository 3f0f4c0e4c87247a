"""The prompts that benchmarks were published with, word for word where a score depends on the words.

Each is a list of chat turns. The words belong to their authors and are quoted for comparison; every function names its source.
Reads and writes nothing.
"""

from __future__ import annotations

from ssd_ray.errors import UserError
from ssd_ray.schema import Problem

Messages = list[dict[str, str]]

_WITH_STARTER = "You will use the following starter code to write the solution to the problem and enclose your code within delimiters."
_FROM_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample inputs). "
    "Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the inputs, runs the "
    "algorithm and writes output to STDOUT."
)
_TASK = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests."
)


def published(problem: Problem) -> Messages:
    """The published prompt of the benchmark that a problem is from, told by its kind and comparison."""
    if problem.kind == "numeric":
        return chain_of_thought(problem)
    if problem.kind == "asserts" and not problem.starter_code:
        return mbpp(problem)
    if problem.kind == "asserts" or problem.comparison.startswith("evalplus"):
        return evalplus(problem)
    return livecodebench(problem)


def livecodebench(problem: Problem) -> Messages:
    """LiveCodeBench's generic system and user turn.

    Source: LiveCodeBench/LiveCodeBench, lcb_runner/prompts/code_generation.py, the form for chat models (MIT).
    """
    form, code = (
        (_WITH_STARTER, problem.starter_code)
        if problem.starter_code
        else (_FROM_STDIN, "# YOUR CODE HERE")
    )
    user = (
        f"### Question:\n{problem.statement}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    return [
        {"role": "system", "content": f"You are an expert Python programmer. {_TASK}"},
        {"role": "user", "content": user},
    ]


def evalplus(problem: Problem) -> Messages:
    """EvalPlus's instruction for HumanEval(+) and MBPP+, as it is sent to chat interfaces.

    Source: evalplus/evalplus 0.3.1, evalplus/codegen.py and evalplus/provider/openai.py (Apache-2.0). With local models
    EvalPlus also begins the answer, which is left out here: an answer is what the model wrote.
    """
    user = (
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        f"```python\n{problem.statement.strip()}\n```"
    )
    return [{"role": "user", "content": user}]


def mbpp(problem: Problem) -> Messages:
    """MBPP's sentence, without the three worked examples and the [BEGIN] and [DONE] marks that base models needed.

    Source: Austin et al. 2021 (arXiv 2108.07732), section 3.1; the tests are part of the statement.
    """
    return [
        {
            "role": "user",
            "content": f"You are an expert Python programmer, and here is your task: {problem.statement.strip()}",
        }
    ]


def chain_of_thought(problem: Problem) -> Messages:
    r"""The zero-shot instruction for mathematics with the answer in `\boxed{}`.

    Source: QwenLM/Qwen2.5-Math, README and evaluation scripts, used by many harnesses for GSM8K and MATH.
    """
    user = f"{problem.statement.strip()}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    return [{"role": "user", "content": user}]


def released_evaluation(problem: Problem) -> Messages:
    """What the authors' released evaluation puts to the model: one user turn, no system message.

    With starter code it has a stray quotation mark and a code fence that is never closed; a comparison with their script
    needs both. Source: apple/ml-ssd, evaluation/benchmark.py, as of 2026-04-16; its sentences are LiveCodeBench's.

    Raises:
        UserError: a problem that is no programming task of LiveCodeBench's two kinds.
    """
    if problem.kind not in {"stdin", "function"}:
        raise UserError(
            f"evaluate.prompt_mode 'release-eval' has no words for {problem.problem_id}, of kind {problem.kind}: use 'published'"
        )
    head = f"{_TASK} You will NOT return anything except for the program.\n\nQuestion: {problem.statement}\n\n"
    if problem.starter_code:
        user = f'{head}{_WITH_STARTER}"\n```python\n{problem.starter_code}\n'
    else:
        user = f"{head}{_FROM_STDIN}\n```python\n  # YOUR CODE HERE\n```"
    return [{"role": "user", "content": user}]
