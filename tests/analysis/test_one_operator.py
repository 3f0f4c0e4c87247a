"""The operator exists once, in `analysis/operator.py`, and in the engine's sampler.

`test_the_sampler_is_the_operator` in tests/inference/test_truncation.py holds one against the
other.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "ssd_ray"
OPERATOR = {"analysis/operator.py", "inference/vllm/truncation.py"}
RANKING = {"topk", "kthvalue", "sort", "argsort", "msort"}
MASS = {"cumsum", "cumsum_", "logcumsumexp"}
FILLING = {"masked_fill", "masked_fill_", "where", "fill_", "index_fill_", "full_like"}
PROCESSORS = {
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TemperatureLogitsWarper",
    "top_k_top_p_filtering",
    "apply_top_k_top_p",
    "random_sample",
}


def _truncates(source: str) -> bool:
    """Return True if code with tensors ranks values, and sums their mass or excludes some."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    if names & PROCESSORS:
        return True
    if "torch" not in names:
        return False
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) != "np"
    ]
    called = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}
    excludes = any(
        call.func.attr in FILLING and "inf" in ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
    )
    return bool(called & RANKING) and (bool(called & MASS) or excludes)


def test_no_other_module_truncates_logits() -> None:
    truncating = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if _truncates(path.read_text())
    }
    assert truncating == OPERATOR


def test_a_copy_would_be_noticed() -> None:
    top_k = "import torch\nz = z.masked_fill(z < z.topk(5).values[:, -1:], -torch.inf)"
    top_p = "import torch\nkept = z.sort().values.softmax(1).cumsum(1) > 0.2"
    theirs = "from transformers import TopPLogitsWarper"
    assert all(map(_truncates, (top_k, top_p, theirs)))
    assert not _truncates("import torch\nz = z.topk(5).values.logsumexp(1)")
    assert not _truncates("import numpy as np\nstarts = np.cumsum(np.sort(lengths))")
