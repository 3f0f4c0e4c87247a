"""Show the progress of long work: a bar per stage on a terminal, lines elsewhere.

- A stage opens a task, updates it with totals, and names the reason of a wait.
- Rates and time left count working time only. Waits, such as for an engine to start, are counted
  separately and named in the last line.
- All output goes to standard error; standard output holds results alone.
- `tasks`: the interface for stages. `display`: the text of a task. `bars`, `lines`: the two forms.
- `recorded`: the lines also in a file, for other processes to show.
"""

import sys

from ssd_ray.progress.bars import LiveProgress
from ssd_ray.progress.lines import LineProgress
from ssd_ray.progress.recorded import RecordedProgress
from ssd_ray.progress.tasks import Progress, Task, counted

__all__ = [
    "LineProgress",
    "LiveProgress",
    "Progress",
    "RecordedProgress",
    "Task",
    "counted",
    "progress",
]


def progress(quiet: bool) -> Progress:
    """Return bars on a terminal, lines elsewhere and with `quiet`."""
    return LineProgress() if quiet or not sys.stderr.isatty() else LiveProgress()
