"""Level L4 of the sandbox: a kernel of its own (gVisor) around a zygote.

- `client` is the grader's end.
- `launcher` is a process that makes the gVisor sandbox and removes it.
- `image` is the file system within.
- `guest_agent` is the process within that serves the grader.
"""
