"""The sandbox: untrusted programs in processes of their own, what they are kept from, and what came of them.

    grader ─ supervisor.py ─ socket ─> zygote.py ─ fork ─> walls.py, then roles.py: the program

Outside, trusted, and the only place that knows an expected output: `supervisor`, `spawning`, `child`, `handles`, `execution`,
`levels`, `seccomp`, `bootstrap`.
Inside, in a bare interpreter: `zygote`, `walls`, `roles`, `check_role`, `lcb_role`, `definitions`, `objects`, `wire`. What
crosses is the text of `wire` and pipes.
At L4 a kernel of its own stands between: `gvisor`, `keeper` and `image` outside, `relay` within, above a zygote of its own.
"""

from ssd_ray.evaluation.sandbox.child import Limits, printable
from ssd_ray.evaluation.sandbox.execution import Conversation, Execution, Status, Unsupported, call
from ssd_ray.evaluation.sandbox.supervisor import Sandbox, best_level

__all__ = [
    "Conversation",
    "Execution",
    "Limits",
    "Sandbox",
    "Status",
    "Unsupported",
    "best_level",
    "call",
    "printable",
]
