"""Published prompts of benchmarks, word for word wherever a score depends on the words.

Each is a list of chat messages. The words belong to their authors and are quoted for comparison.
Every function names its source. Does no I/O.
"""

from __future__ import annotations

from ssd_ray.errors import UserError
from ssd_ray.schema import Problem

Messages = list[dict[str, str]]

_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters."
)
_FROM_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_TASK = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests."
)


def published(problem: Problem) -> Messages:
    """Return the published prompt of a problem's benchmark, selected by its kind and comparison."""
    if problem.kind == "numeric":
        return chain_of_thought(problem)
    if problem.kind == "asserts" and not problem.starter_code:
        return mbpp(problem)
    if problem.kind == "asserts" or problem.comparison.startswith("evalplus"):
        return evalplus(problem)
    return livecodebench(problem)


def livecodebench(problem: Problem) -> Messages:
    """Return LiveCodeBench's generic system and user message.

    Source: LiveCodeBench/LiveCodeBench, lcb_runner/prompts/code_generation.py, the form for chat
    models (MIT).
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
    """Return EvalPlus's instruction for HumanEval(+) and MBPP+, as sent to chat interfaces.

    Source: evalplus/evalplus 0.3.1, evalplus/codegen.py and evalplus/provider/openai.py
    (Apache-2.0). For local models EvalPlus also writes the beginning of the answer. It is left out
    here, as an answer is the model's output.
    """
    user = (
        "Please provide a self-contained Python script that solves the following problem in a "
        "markdown code block:\n"
        f"```python\n{problem.statement.strip()}\n```"
    )
    return [{"role": "user", "content": user}]


def mbpp(problem: Problem) -> Messages:
    """Return MBPP's sentence, without the worked examples and marks for base models.

    Left out are three examples and the marks [BEGIN] and [DONE]. The tests are part of the
    statement.

    Source: Austin et al. 2021 (arXiv 2108.07732), section 3.1.
    """
    user = (
        f"You are an expert Python programmer, and here is your task: {problem.statement.strip()}"
    )
    return [{"role": "user", "content": user}]


def chain_of_thought(problem: Problem) -> Messages:
    r"""Return the zero-shot instruction for mathematics, with the answer in `\boxed{}`.

    Source: QwenLM/Qwen2.5-Math, README and evaluation scripts, used by many harnesses for GSM8K and
    MATH.
    """
    user = (
        f"{problem.statement.strip()}\n"
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    return [{"role": "user", "content": user}]


def released_evaluation(problem: Problem) -> Messages:
    """Return the prompt of the authors' released evaluation, a single user message.

    With starter code it has a stray quotation mark and a code fence without an end. Both are kept,
    for comparison with the authors' script. Source: apple/ml-ssd, evaluation/benchmark.py, as of
    2026-04-16. Its sentences are LiveCodeBench's.

    Raises:
        UserError: The problem is of neither kind of LiveCodeBench, `stdin` or `function`.
    """
    if problem.kind not in {"stdin", "function"}:
        raise UserError(
            f"evaluate.prompt_mode 'release-eval' has no words for {problem.problem_id}, of kind "
            f"{problem.kind}: use 'published'"
        )
    head = (
        f"{_TASK} You will NOT return anything except for the program.\n\n"
        f"Question: {problem.statement}\n\n"
    )
    if problem.starter_code:
        user = f'{head}{_WITH_STARTER}"\n```python\n{problem.starter_code}\n'
    else:
        user = f"{head}{_FROM_STDIN}\n```python\n  # YOUR CODE HERE\n```"
    return [{"role": "user", "content": user}]
