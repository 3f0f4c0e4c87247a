"""Code of the sandbox, for a bare interpreter without packages; it trusts no program.

| module | subject |
|---|---|
| `zygote`, `walls` | fork a process for each program, confine it |
| `roles` | run the program, or have it answer messages |
| `check_role` | the trusted check of a HumanEval problem |
| `lcb_role`, `lcb_stdin` | LiveCodeBench's rules, its stand-in for standard input |
| `definitions` | names bound by a program |
| `objects`, `kinds` | arguments with their identity, kinds of containers |
| `shortage` | exceptions that mean a shortage of memory |

`bootstrap` loads these files as top-level modules, so they import one another by bare names.
"""
