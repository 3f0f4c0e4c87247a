"""Code of the sandbox, for a bare interpreter without packages; it trusts no program.

| module | subject |
|---|---|
| `zygote`, `walls` | fork a process for each program, confine it |
| `mounts`, `landlock`, `kernel` | a root of its own, rules for files, calls of the kernel |
| `roles` | run the program, or have it answer messages |
| `check_role` | the trusted check of a HumanEval problem |
| `lcb_role`, `lcb_program` | LiveCodeBench's rules, its way to load a program |
| `lcb_stdin` | its stand-in for standard input |
| `definitions` | names bound by a program |
| `objects` | arguments with their identity |
| `contents`, `kinds` | contents and kinds of containers |
| `shortage` | exceptions that mean a shortage of memory |

`bootstrap` loads these files as top-level modules, so they import one another by bare names.
"""
