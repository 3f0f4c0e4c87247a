"""Code that runs in the sandbox: a bare interpreter without packages, which trusts no program.

- `zygote` forks a process for each program; `walls` confines it; `roles` runs it.
- `check_role` and `lcb_role` are the roles with rules of their own; `lcb_stdin` a stand-in for stdin.
- `definitions`, `objects`, `kinds`, `shortage`: names that a program defines, values without its code, and
  errors of a machine that lacks memory or threads.

`bootstrap` loads these files as top-level modules.
"""
