"""A seccomp filter on system calls: it allows threads, and refuses processes and sockets.

- It is an allow-list, so calls of later kernels are refused too.
- `compile_filters` returns classic BPF as bytes. The sandbox loads them.
- The module does no I/O.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

OWN_PID = 0x7FFF_FFF1
"""Placeholder in the filter for the program's process id, filled in by its process.

It is larger than any process id.
"""
OWN_PID_BYTES = struct.pack("<I", OWN_PID)

_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT = 0x4000_0000
_FIRST_UNKNOWN = 470
"""First call number of later kernels. They get ENOSYS, so that libraries fall back."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_GRANT, _REFUSE = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_ARCH_OFFSET, _NUMBER_OFFSET, _ARGUMENTS_OFFSET = 4, 0, 16

_CLONE_THREAD = 0x0001_0000
_WRITING = 0o3 | 0o100 | 0o1000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC."""
_VALUES = {
    # Duplicate, get and set flags, get a pipe's size or a file's seals. No locks, no leases.
    "fcntl": (1, (0, 1, 2, 3, 4, 1030, 1032, 1034)),
    # Requests of isatty, window sizes, FIONREAD, FIONBIO and close-on-exec.
    "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # AF_UNIX: asyncio wakes itself up by such a pair.
    "socketpair": (0, (1,)),
    "prlimit64": (0, (0,)),
}
"""Calls allowed if one argument has one of some values: (index of the argument, values)."""
_PATH_FLAGS = {"open": 1, "openat": 2}
_ZYGOTE_ONLY = (
    "sendmsg",
    "recvmsg",
    "pidfd_open",
    "setsid",
    "setgroups",
    "setresgid",
    "setresuid",
    "capset",
)
_THREADS_NAME = (15, 16, 0x5356_4D41)
"""Options of prctl open to a program: names of its threads and of its mappings."""
_SIGKILL = 9
_RLIMIT_CPU = 0
_SIGNALS = {"kill": 1, "tgkill": 2}
"""Calls that send signals, only to oneself and never SIGKILL: index of the signal's argument."""

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "pidfd_open": (434, 434),
    "setsid": (112, 157),
    "setgroups": (116, 159),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "capset": (126, 91),
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "open": (2, None),
    "openat": (257, 56),
    "getdents64": (217, 61),
    "fadvise64": (221, 223),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockopt": (55, 209),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "mincore": (27, 232),
    "membarrier": (324, 283),
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "gettid": (186, 178),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getcpu": (309, 168),
    "getpriority": (140, 141),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "umask": (95, 166),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "pause": (34, None),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "getrandom": (318, 278),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "restart_syscall": (219, 128),
}
"""Allowed calls, with their numbers on x86_64 and aarch64."""


def column() -> int:
    """Return the index of this machine's instruction set in the values of NUMBERS."""
    return list(_AUDIT_ARCH).index(platform.machine())


def supported() -> bool:
    """Return True if NUMBERS covers this machine's instruction set."""
    return platform.machine() in _AUDIT_ARCH


def compile_filters(*, deny_writing: bool) -> tuple[bytes, bytes]:
    """Return the filters of a zygote and of its children, as arrays of `struct sock_filter`.

    - A zygote's is the allow-list, with the calls to fork confined children. They inherit it.
    - A child adds its own, which takes these calls away again. It also refuses SIGKILL to oneself
      and a new limit of CPU time, so only the grader or the machine can cause a SIGKILL. It is
      small because every program pays for it.

    Args:
        deny_writing: Refuse to open files for writing, for a zygote without Landlock.
    """
    start = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_EQUAL, 1, 0, _AUDIT_ARCH[platform.machine()]),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    start.append((_LOAD, 0, 0, _NUMBER_OFFSET))
    common = [*start, (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    common += [(_AT_LEAST, 0, 1, _FIRST_UNKNOWN), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, numbers in NUMBERS.items():
        common += _when(numbers[column()], _rule(name, deny_writing=deny_writing))
    own = [*start]
    for name in _ZYGOTE_ONLY:
        own += _when(NUMBERS[name][column()], [_REFUSE])
    own += _when(NUMBERS["prctl"][column()], _one_of(0, _THREADS_NAME))
    for name, index in _SIGNALS.items():
        own += _when(NUMBERS[name][column()], _own_signal(index))
    own += _when(
        NUMBERS["setrlimit"][column()], [_low_word(0), (_EQUAL, 0, 1, _RLIMIT_CPU), _REFUSE, _GRANT]
    )
    own += _when(NUMBERS["prlimit64"][column()], _no_new_cpu_limit())
    own += _when(
        NUMBERS["clone"][column()], [_low_word(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), _REFUSE, _GRANT]
    )
    return assemble([*common, _REFUSE]), assemble([*own, _GRANT])


def _when(number: int | None, body: list[Instruction]) -> list[Instruction]:
    """Return instructions to apply a body to one call; the body always returns."""
    return [] if number is None else [(_EQUAL, 0, len(body), number), *body]


def _one_of(index: int, values: Sequence[int]) -> list[Instruction]:
    """Return instructions to grant a call if an argument has one of the values."""
    tests = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [_low_word(index), *tests, _REFUSE, _GRANT]


def _own_signal(index: int) -> list[Instruction]:
    """Return instructions to grant any signal but SIGKILL to oneself.

    So a process killed by SIGKILL was killed from outside.
    """
    return [
        _low_word(0),
        (_EQUAL, 0, 2, OWN_PID),
        _low_word(index),
        (_EQUAL, 0, 1, _SIGKILL),
        _REFUSE,
        _GRANT,
    ]


def _no_new_cpu_limit() -> list[Instruction]:
    """Return instructions to grant reading all limits, and changing any but that of CPU time.

    The kernel sends SIGKILL at the hard limit of CPU time.
    """
    # The new limit is a pointer: null, in both words, for a call that only reads.
    asks = [_low_word(2), (_EQUAL, 0, 3, 0), _high_word(2), (_EQUAL, 0, 1, 0), _GRANT, _REFUSE]
    return [_low_word(1), (_EQUAL, 1, 0, _RLIMIT_CPU), _GRANT, *asks]


Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, constant."""


def assemble(code: Sequence[Instruction]) -> bytes:
    """Return instructions as an array of `struct sock_filter`."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _rule(name: str, *, deny_writing: bool) -> list[Instruction]:
    """Return the body for one call; it always returns, so the next rule is never reached."""
    if name in _VALUES:
        return _one_of(*_VALUES[name])
    # Its flags are in memory, which a filter cannot read. The C library falls back to clone.
    if name == "clone3":
        return [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    # Without an address, it reaches only the other end of a pair.
    if name == "sendto":
        return [_low_word(4), (_EQUAL, 0, 2, 0), _high_word(4), (_EQUAL, 1, 0, 0), _REFUSE, _GRANT]
    if name in _PATH_FLAGS and deny_writing:
        return [_low_word(_PATH_FLAGS[name]), (_ANY_BIT, 0, 1, _WRITING), _REFUSE, _GRANT]
    return [_GRANT]


def _low_word(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index)


def _high_word(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index + 4)
