"""Level L4 of the sandbox: a kernel of its own (gVisor) around a zygote.

- `client`: the grader's end; `launcher`: a process that makes the sandbox and ends it.
- `image`: the file system within; `guest_agent`: the process within that serves the grader.
"""
