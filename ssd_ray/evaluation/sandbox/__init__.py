"""The sandbox: untrusted programs, each in a confined process of its own.

    grader ─ supervisor.py ─ socket ─> zygote.py ─ fork ─> walls.py, then roles.py: the program

- Outside and trusted: `supervisor`, `spawning`, `process`, `child`, `handles`, `execution`,
  `levels`, `seccomp`, `bootstrap`. Expected outputs never leave this side.
- Inside, in a bare interpreter: the modules of `inside` and `ssd_ray.wire`.
- Only pipes with text of the wire cross the border, and sealed memory files on the way in.
- At level L4, `gvisor` puts a kernel of its own around a zygote.

docs/sandbox.md lists the levels, the claims and the tests.
"""

from ssd_ray.evaluation.sandbox.child import printable
from ssd_ray.evaluation.sandbox.execution import Conversation, Execution, Status, Unsupported, call
from ssd_ray.evaluation.sandbox.process import Limits
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
