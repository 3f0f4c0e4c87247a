"""A session on a page is read, run in one shell, and compared without its times and names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.session import Shell, Step, agrees, differences, steps_of

PAGE = """\
Text.

```console
$ name=world
$ echo hello \\
    $name
hello world
```

```bash
$ not a session
```

```console
$ ls
...
```
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, {})
    yield shell
    shell.close()


def test_a_page_has_commands_with_their_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    steps = steps_of(page)
    assert [step.command for step in steps] == ["name=world", "echo hello \\\n    $name", "ls"]
    assert [step.output for step in steps] == ["", "hello world", "..."]


@pytest.mark.parametrize(
    ("expected", "output", "is_same"),
    [
        ("a  b", "a b", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("...\nb", "x\ny\nb", True),
        ("...", "", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("c-head-abcde 12s", "c-head-x2z4y 3m1s", True),
        ("took 3.1 s at 0:12", "took 14 s at 1:02:03", True),
        ("http://10.0.0.1:80", "http://10.89.77.2:80", True),
        ("3 pods", "4 pods", False),
        ("a.b", "axb", False),
    ],
)
def test_outputs_are_compared_without_what_changes(
    expected: str, output: str, is_same: bool
) -> None:
    assert agrees(expected, output) == is_same


def test_commands_share_a_shell_and_read_no_input(shell: Shell) -> None:
    results = [
        shell.run(Step(command=command, output=output), 60)
        for command, output in (
            ("name=world", ""),
            ("cat; echo $name; false", "world"),
            ("echo $name >&2", "moon"),
        )
    ]
    assert [each.status for each in results] == [0, 1, 0]
    (difference,) = differences(results)
    assert difference.endswith("page:\nmoon\nnow (status 0):\nworld")


def test_a_command_without_an_end_is_named(shell: Shell) -> None:
    with pytest.raises(TimeoutError, match="sleep 60: no end after 0 s"):
        shell.run(Step(command="sleep 60", output=""), 0.2)
