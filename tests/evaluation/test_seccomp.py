"""The system call filter matches its list, evaluated by a BPF interpreter in Python."""

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys

import pytest

from ssd_ray.evaluation.sandbox import Limits, Sandbox, best_level, levels, seccomp

ALLOW, EPERM, ENOSYS, KILL = (
    0x7FFF_0000,
    0x0005_0000 | errno.EPERM,
    0x0005_0000 | errno.ENOSYS,
    0x8000_0000,
)
ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
MACHINES = list(ARCHITECTURES)


def evaluate(program, number, arguments=(), arch=None):
    """Return a filter's action for a call, as the kernel's classic BPF machine does.

    Source: Documentation/networking/filter.rst.
    """
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack(
        "<iIQ6Q", number, arch, 0, *(argument & (1 << 64) - 1 for argument in padded)
    )
    instructions = list(struct.iter_unpack("<HBBI", program))
    position = accumulator = 0
    while True:
        operation, if_true, if_false, constant = instructions[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x06:
                return constant
            case 0x05:
                position += constant
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = {
                    0x15: accumulator == constant,
                    0x25: accumulator > constant,
                    0x35: accumulator >= constant,
                    0x45: bool(accumulator & constant),
                }[operation]
                position += if_true if holds else if_false
            case _:
                raise AssertionError(
                    f"an instruction that this machine does not know: {operation:#x}"
                )


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return request.param


def decide(machine, name_or_number, *arguments, deny_writing=False):
    number = name_or_number
    if isinstance(number, str):
        number = seccomp.NUMBERS[number][MACHINES.index(machine)]
    return both(
        seccomp.compile_filters(deny_writing=deny_writing),
        number,
        arguments,
        ARCHITECTURES[machine],
    )


def both(filters, number, arguments, arch):
    """Combine two filters: the kernel takes the stricter action, as a signed number."""
    decisions = [evaluate(program, number, arguments, arch) for program in filters]
    return min(
        decisions, key=lambda decision: (decision & 0xFFFF_0000) - ((decision & 0x8000_0000) << 1)
    )


def test_every_call_is_decided_as_listed(machine):
    column = MACHINES.index(machine)
    listed = {
        numbers[column]: name
        for name, numbers in seccomp.NUMBERS.items()
        if numbers[column] is not None
    }
    for number in range(470):
        decision = decide(machine, number)
        if number not in listed:
            assert decision == EPERM, number
        else:
            assert decision in (ALLOW, EPERM, ENOSYS), listed[number]


def test_numbers_are_listed_once(machine):
    numbers = [pair[MACHINES.index(machine)] for pair in seccomp.NUMBERS.values()]
    known = [number for number in numbers if number is not None]
    assert len(known) == len(set(known))


def test_newer_calls_get_enosys_and_foreign_ones_kill(machine):
    for number in (470, 471, 1000, 0x3FFF_FFFF):
        assert decide(machine, number) == ENOSYS
    for number in (0x4000_0000, 0x4000_0000 | 39, 0x7FFF_FFFF, -1, -(1 << 31)):
        assert decide(machine, number) == KILL
    filters = seccomp.compile_filters(deny_writing=False)
    for arch in {0x4000_0003, 0, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}:
        assert both(filters, 0, (), arch) == KILL


def test_threads_are_allowed_and_processes_refused(machine):
    thread = 0x3D0F00
    assert decide(machine, "clone", thread) == ALLOW
    for flags in (17, 0, 0x100, 0x4000 | 0x100 | 17, 0x1000_0000 | 17, 0x2000_0000):
        assert decide(machine, "clone", flags) == EPERM, hex(flags)
    assert decide(machine, "clone3", 0, 88) == ENOSYS


def test_signals_and_limits_of_other_processes_are_refused(machine):
    own = seccomp.OWN_PID
    for pid in (0, 1, own - 1, own + 1, -1, -own):
        assert decide(machine, "kill", pid, 15) == EPERM, pid
        assert decide(machine, "tgkill", pid, pid, 15) == EPERM, pid
    assert decide(machine, "prlimit64", 0, 7) == ALLOW
    assert decide(machine, "prlimit64", os.getppid(), 7) == EPERM
    assert decide(machine, "prctl", 15) == ALLOW
    for option in (1, 4, 22, 23, 24, 36, 38, 39, 47, 0x59616D61):
        assert decide(machine, "prctl", option) == EPERM


def test_no_program_can_send_itself_sigkill(machine):
    own = seccomp.OWN_PID
    for number in range(65):
        wanted = EPERM if number == 9 else ALLOW
        assert decide(machine, "kill", own, number) == wanted
        assert decide(machine, "tgkill", own, 1, number) == wanted
    for limit in range(16):
        wanted = EPERM if limit == 0 else ALLOW
        assert decide(machine, "setrlimit", limit, 1) == wanted
        for address in (1, 1 << 32, (1 << 64) - 1):
            assert decide(machine, "prlimit64", 0, limit, address, 0) == wanted
        assert decide(machine, "prlimit64", 0, limit, 0, 1) == ALLOW


def test_descriptors_are_not_locked_owned_or_sent_elsewhere(machine):
    for command in (0, 1, 2, 3, 4, 1030):
        assert decide(machine, "fcntl", 3, command) == ALLOW
    for command in (5, 6, 7, 8, 10, 36, 37, 38, 1024, 1026, 1031, 1033):
        assert decide(machine, "fcntl", 3, command) == EPERM
    assert decide(machine, "sendto", 3, 0, 5, 0, 0) == ALLOW
    for address in (1, 1 << 32, 0x7FFF_0000_0000, (1 << 64) - 1):
        assert decide(machine, "sendto", 3, 0, 5, 0, address) == EPERM, hex(address)
    assert decide(machine, "socketpair", 1, 1, 0) == ALLOW
    assert decide(machine, "socketpair", 2, 1, 0) == EPERM


def test_without_landlock_nothing_is_opened_for_writing(machine):
    for flags in (0o1, 0o2, 0o100, 0o1000, 0o20200002, 0o2000001):
        assert decide(machine, "openat", -100, 0, flags, deny_writing=True) == EPERM, oct(flags)
        assert decide(machine, "openat", -100, 0, flags) == ALLOW
    for flags in (0, 0o2000000, 0o200000):
        assert decide(machine, "openat", -100, 0, flags, deny_writing=True) == ALLOW


DANGEROUS = (
    "socket connect bind listen accept sendmsg sendmmsg fork vfork execve execveat ptrace "
    "process_vm_readv process_vm_writev "
    "pidfd_open pidfd_getfd pidfd_send_signal tkill rt_sigqueueinfo unshare setns mount umount2 "
    "pivot_root chroot keyctl add_key "
    "request_key shmget msgget semget mq_open memfd_create ftruncate truncate chmod fchmod "
    "fchmodat chown utimensat setxattr "
    "unlink unlinkat rename renameat2 mkdir mkdirat mknod link symlink symlinkat flock "
    "io_uring_setup bpf perf_event_open "
    "userfaultfd init_module reboot setuid setgid capset seccomp personality sched_setaffinity "
    "sched_setattr setpriority openat2 "
    "open_by_handle_at name_to_handle_at kcmp splice vmsplice fallocate timer_create syslog "
    "sethostname landlock_restrict_self"
)


def test_nothing_dangerous_is_granted(machine):
    for name in DANGEROUS.split():
        if name in seccomp.NUMBERS:
            assert decide(machine, name) == EPERM, name


def test_programs_lose_the_zygotes_own_calls(machine):
    inherited, _ = seccomp.compile_filters(deny_writing=False)
    for name in ("sendmsg", "recvmsg", "pidfd_open", "setresuid", "capset", "setsid"):
        number = seccomp.NUMBERS[name][MACHINES.index(machine)]
        assert evaluate(inherited, number, (), ARCHITECTURES[machine]) == ALLOW
        assert decide(machine, name) == EPERM


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of x86_64")
def test_the_kernel_decides_as_the_evaluation_does():
    numbers = {
        "memfd_create": 319,
        "ftruncate": 77,
        "socket": 41,
        "flock": 73,
        "unshare": 272,
        "openat2": 437,
        "clone3": 435,
        "new": 480,
    }
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in {sorted(numbers.values())}:
    libc.syscall(number, -1, -1, -1, -1, -1)
    print(number, ctypes.get_errno())
"""
    level = next(level for level in levels.candidates() if level.name == "L1")
    with Sandbox(level=level) as sandbox:
        execution = sandbox.run_program(code, "", Limits(time_s=5, memory_mib=256, output_kib=64))
    got = dict(map(int, line.split()) for line in execution.stdout.splitlines())
    wanted = {number: decide("x86_64", number, -1, -1, -1) & 0xFFFF for number in numbers.values()}
    assert got == wanted


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="no list for this machine")
@pytest.mark.parametrize(
    "call", ["getpid", "gettid", "umask", "futex", "sched_yield", "getrandom", "mmap", "openat"]
)
def test_the_numbers_are_those_of_this_machine(call):
    header = (
        subprocess.run(
            ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-xc", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
        if _has_compiler()
        else None
    )
    if header is None or header.returncode != 0:
        pytest.skip("no C compiler with the kernel's headers here")
    defined = dict(
        line.split()[1:3]
        for line in header.stdout.splitlines()
        if line.startswith("#define __NR_") and len(line.split()) == 3
    )
    mine = {
        f"__NR_{name}": str(numbers[seccomp.column()])
        for name, numbers in seccomp.NUMBERS.items()
        if numbers[seccomp.column()]
    }
    assert {
        name: number for name, number in mine.items() if name in defined and defined[name] != number
    } == {}
    assert f"__NR_{call}" in defined


def _has_compiler():
    return any(
        os.access(os.path.join(place, "cc"), os.X_OK)
        for place in os.environ.get("PATH", "").split(os.pathsep)
    )


def test_a_machine_without_a_list_has_no_filtered_level(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not seccomp.supported()
    assert [level.name for level in levels.candidates()] == ["L0"]


def test_the_filter_is_small_enough_for_the_kernel(machine):
    for deny_writing in (False, True):
        inherited, own = seccomp.compile_filters(deny_writing=deny_writing)
        assert len(inherited) % 8 == len(own) % 8 == 0
        assert len(inherited) // 8 + len(own) // 8 <= 4096
        assert inherited.count(seccomp.OWN_PID_BYTES) == 0
        assert own.count(seccomp.OWN_PID_BYTES) == 2  # kill and tgkill, and nothing by accident


def test_the_constants_of_this_file_match_this_machine():
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert sys.byteorder == "little"
    assert best_level().name in levels.LEVELS
