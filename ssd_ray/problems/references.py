"""Reference solutions as answers of a model: a code block, then the end token.

- They are no path of the model. Compare them with its own answers, and never take them for those.
- Pure functions without I/O.
"""

from __future__ import annotations

from typing import Any

from ssd_ray.schema import Problem


def reference_ids(problem: Problem, tokenizer: Any) -> tuple[int, ...] | None:
    """Return the token ids of a problem's reference solution; None if it has none."""
    if problem.reference is None:
        return None
    text = problem.reference.strip()
    if problem.kind != "numeric":
        text = f"```python\n{text}\n```"
    end = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return (*tokenizer.encode(text, add_special_tokens=False), *end)
