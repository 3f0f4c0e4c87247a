"""Hostile programs that reach for processes, network, files and kernel (see hostile.py)."""

# ruff: noqa: E501
from __future__ import annotations

from tests.support.hostile import Hostile, hostiles

_CATEGORIES: dict[str, dict[str, str]] = {
    "processes": {
        "fork": "attempt('fork', lambda: os.fork() >= 0)\nattempt('forkpty', lambda: os.forkpty())",
        "vfork": "attempt('vfork', lambda: column == 0 and call(58) or libc.vfork() > 0)",
        "clone": """
            for flags in (17, 0x100, 0x4000 | 0x100, 0x8000 | 17, 0x10000000 | 17, 0x20000000 | 17, 0x40000000 | 17, 0x20000 | 17, 0):
                attempt(hex(flags), lambda: call((56, 220), flags, 0, 0, 0, 0))
        """,
        "clone3": """
            for flags in (0, 0x100, 0x10000, 0x10000000):
                attempt(hex(flags), lambda: call(435, (ctypes.c_uint64 * 11)(flags, 0, 0, 0, 17), 88))
        """,
        "clone with namespaces": """
            for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
                attempt(hex(flag), lambda: call((56, 220), flag | 0x10000 | 0x800 | 0x100, 0, 0, 0, 0))
        """,
        "exec": """
            path, argv = sys.executable.encode(), (ctypes.c_char_p * 2)(b"x", None)
            attempt("execv", lambda: os.execv("/bin/sh", ["sh", "-c", "echo ESCAPED"]))
            attempt("execve", lambda: call((59, 221), path, argv, None))
            attempt("execveat", lambda: call((322, 281), -100, path, argv, None, 0))
            attempt("loader", lambda: os.execv("/lib64/ld-linux-x86-64.so.2", ["ld.so", "/bin/true"]))
            attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
        """,
        "subprocess": """
            import subprocess, pty
            attempt("system", lambda: os.system("true") == 0)
            attempt("popen", lambda: os.popen("echo x").read())
            attempt("run", lambda: subprocess.run(["/bin/echo", "x"], capture_output=True).stdout)
            attempt("shell", lambda: subprocess.check_output("id", shell=True))
            attempt("pty", lambda: pty.spawn("/bin/true"))
        """,
        "multiprocessing": """
            import multiprocessing, concurrent.futures
            for method in ("fork", "spawn", "forkserver"):
                attempt(method, lambda: multiprocessing.get_context(method).Process(target=print).start() or True)
            attempt("pool", lambda: [*concurrent.futures.ProcessPoolExecutor(1).map(abs, [1])])
        """,
        "a daemon": """
            attempt("daemon", lambda: libc.daemon(0, 0) == 0)
            attempt("a session", lambda: call((112, 157)))
        """,
        "signals to others": """
            for pid in (os.getppid(), GRADER, VICTIM, 1, 0, -1, -GRADER, -VICTIM, -os.getppid(), 2, 3, 4):
                for number in (0, signal.SIGKILL, signal.SIGSTOP):
                    if pid not in (0, -1) or number:
                        attempt(f"kill {pid} {number}", lambda: os.kill(pid, number) or True)
            for pid in (os.getppid(), GRADER, VICTIM):
                attempt(f"tgkill {pid}", lambda: call((234, 131), pid, pid, 9))
                attempt(f"tkill {pid}", lambda: call((200, 130), pid, 9))
                attempt(f"sigqueue {pid}", lambda: call((129, 138), pid, 9, ctypes.create_string_buffer(128)))
                attempt(f"tgsigqueue {pid}", lambda: call((297, 240), pid, pid, 9, ctypes.create_string_buffer(128)))
                attempt(f"killpg {pid}", lambda: os.killpg(pid, 9) or True)
                attempt(f"by owner {pid}", lambda: call((72, 25), 1, 8, pid))
            attempt("pidfd", lambda: call(424, 0, 9, 0, 0))
        """,
        "signals to its own group": "attempt('killpg', lambda: os.killpg(0, signal.SIGKILL) or True)",
        "limits and scheduling of others": """
            limit = (ctypes.c_uint64 * 2)(1, 1)
            for pid in (os.getppid(), GRADER, VICTIM):
                attempt(f"prlimit {pid}", lambda: call((302, 261), pid, 0, limit, 0))
                attempt(f"read prlimit {pid}", lambda: call((302, 261), pid, 7, 0, limit))
                attempt(f"setattr {pid}", lambda: call((314, 274), pid, (ctypes.c_uint32 * 12)(48, 5), 0))
                attempt(f"scheduler {pid}", lambda: call((144, 119), pid, 5, (ctypes.c_int * 1)(0)))
                attempt(f"affinity {pid}", lambda: os.sched_setaffinity(pid, {0}) or True)
                attempt(f"priority {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) or True)
                attempt(f"ioprio {pid}", lambda: call((251, 30), 1, pid, 0x6000))
                attempt(f"migrate {pid}", lambda: call((256, 238), pid, 0, 0, 0))
                attempt(f"pages {pid}", lambda: call((279, 239), pid, 0, 0, 0, 0, 0))
            attempt("madvise", lambda: call(440, 3, 0, 0, 0, 0))
            attempt("user priority", lambda: os.setpriority(os.PRIO_USER, 0, 19) or True)
            attempt("own affinity", lambda: os.sched_setaffinity(0, {0}) or True)
        """,
        "more for itself": """
            import resource
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK):
                attempt(f"limit {kind}", lambda: resource.setrlimit(kind, (1 << 40, 1 << 40)) or True)
            attempt("nice", lambda: os.nice(-5))
            attempt("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) or True)
            attempt("dumpable", lambda: libc.prctl(4, 1, 0, 0, 0) == 0)
            attempt("outlive the parent", lambda: libc.prctl(1, 0, 0, 0, 0) == 0)
            attempt("adopt", lambda: libc.prctl(36, 1, 0, 0, 0) == 0)
            attempt("be traced", lambda: libc.prctl(0x59616D61, -1, 0, 0, 0) == 0)
            attempt("another filter", lambda: call((317, 277), 1, 0, ctypes.create_string_buffer(16)))
            attempt("root", lambda: os.setuid(0) or True)
            attempt("another user", lambda: os.setresuid(VICTIM, VICTIM, VICTIM) or True)
            attempt("groups", lambda: os.setgroups([0]) or True)
            attempt("capabilities", lambda: call((126, 91), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()))
            attempt("score", lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
            attempt("is root", lambda: os.getuid() == 0)
        """,
    },
    "network": {
        "sockets of every family": """
            import socket
            for family in range(46):
                for kind in (1, 2, 3, 5):
                    for protocol in (0, 262):
                        attempt(f"{family} {kind} {protocol}", lambda: call((41, 198), family, kind, protocol))
        """,
        "the grader's machine": """
            import socket, urllib.request
            for port in (@PORT@, 22, 6379, 8265, 10001, 8076):
                attempt(port, lambda: socket.create_connection(("127.0.0.1", port), timeout=1))
            for host in ("169.254.169.254", "8.8.8.8", "::1", "10.96.0.1"):
                attempt(host, lambda: socket.create_connection((host, 80), timeout=1))
            attempt("server", lambda: socket.create_server(("127.0.0.1", 0)))
            attempt("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", @PORT@)))
            attempt("metadata", lambda: urllib.request.urlopen("http://169.254.169.254/latest/meta-data", timeout=1))
            attempt("name", lambda: socket.gethostbyname("example.com"))
            attempt("interfaces", lambda: socket.if_nameindex())
        """,
        "a pair turned outwards": """
            import socket
            a, b = socket.socketpair()
            pairs = (socket.AF_UNIX, socket.SOCK_DGRAM)
            c, d = socket.socketpair(*pairs)
            for name in ("@SOCKET@", "\\0@TOKEN@"):
                attempt("connect", lambda: a.connect(name) or True)
                attempt("sendto", lambda: c.sendto(b"x", name))
                attempt("bind", lambda: d.bind(name) or True)
            attempt("descriptors", lambda: socket.send_fds(a, [b"x"], [0]))
            attempt("listen", lambda: a.listen() or True)
            attempt("inet pair", lambda: socket.socketpair(socket.AF_INET))
        """,
        "io_uring": "\nfor number in (425, 426, 427):\n    attempt(number, lambda: call(number, 8, ctypes.create_string_buffer(120), 0, 0, 0, 0))",
    },
    "files": {
        "the same user's file": """
            path = "@MINE@"
            attempt("write", lambda: open(path, "w"))
            attempt("append", lambda: os.open(path, os.O_WRONLY | os.O_APPEND) >= 0)
            attempt("read and write", lambda: os.open(path, os.O_RDWR) >= 0)
            attempt("chmod", lambda: os.chmod(path, 0) or True)
            attempt("fchmodat2", lambda: call(452, -100, path.encode(), 0, 0))
            attempt("chown", lambda: os.chown(path, os.getuid(), -1) or True)
            attempt("times", lambda: os.utime(path, (0, 0)) or True)
            attempt("xattr", lambda: os.setxattr(path, "user.x", b"x") or True)
            attempt("no xattr", lambda: os.removexattr(path, "user.x") or True)
            attempt("unlink", lambda: os.remove(path) or True)
            attempt("rename", lambda: os.rename(path, path + "x") or True)
            attempt("truncate", lambda: os.truncate(path, 0) or True)
            attempt("hard link", lambda: os.link(path, path + "x") or True)
            attempt("symlink", lambda: os.symlink("/etc/passwd", path + "x") or True)
            attempt("watch", lambda: call((294, 26), 0))
            attempt("fanotify", lambda: call((300, 262), 0, 0))
            attempt("flags", lambda: call((16, 29), 0, 0x40086602, ctypes.byref(ctypes.c_long(16))))
        """,
        "new files anywhere": """
            import tempfile
            for place in (".", "/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/dev", "/proc", "@HERE@", os.path.dirname(os.__file__)):
                name = os.path.join(place, "@TOKEN@")
                attempt(f"open {name}", lambda: open(name, "w"))
                attempt(f"mkdir {name}", lambda: os.mkdir(name) or True)
                attempt(f"mknod {name}", lambda: os.mknod(name) or True)
                attempt(f"mkfifo {name}", lambda: os.mkfifo(name) or True)
                attempt(f"unnamed in {place}", lambda: os.open(place, os.O_TMPFILE | os.O_RDWR) >= 0)
            attempt("tempfile", lambda: tempfile.TemporaryFile())
            attempt("chdir", lambda: os.chdir("@HERE@") or open("@TOKEN@", "w"))
        """,
        "locks": """
            import fcntl
            with open(os.__file__) as file:
                for what, act in (("flock", lambda: fcntl.flock(file, fcntl.LOCK_SH)), ("lockf", lambda: fcntl.lockf(file, fcntl.LOCK_SH))):
                    attempt(what, lambda: act() or True)
                for command in (5, 6, 7, 8, 10, 36, 37, 38, 1024, 1026, 1031, 1033, 1036):
                    attempt(f"fcntl {command}", lambda: call((72, 25), file.fileno(), command, ctypes.create_string_buffer(64)))
            attempt("flock of standard output", lambda: fcntl.flock(1, fcntl.LOCK_EX | fcntl.LOCK_NB) or True)
        """,
    },
    "kernel": {
        "namespaces and mounts": """
            for flag in (0x80, 0x20000, 0x200, 0x400, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
                attempt(f"unshare {flag:x}", lambda: call((272, 97), flag))
            attempt("mount", lambda: call((165, 40), b"none", b"/", b"tmpfs", 0, 0))
            attempt("remount", lambda: call((165, 40), b"none", b"/", 0, 32 | 4096, 0))
            attempt("umount", lambda: call((166, 39), b"/proc", 2))
            attempt("pivot_root", lambda: call((155, 41), b".", b"."))
            attempt("chroot", lambda: os.chroot(".") or True)
            attempt("setns", lambda: call((308, 268), 0, 0))
            attempt("mount_setattr", lambda: call(442, -100, b"/", 0, ctypes.create_string_buffer(32), 32))
            for number in (429, 430, 431, 432, 433, 457, 458):
                attempt(f"mounting {number}", lambda: call(number, 0, 0, 0, 0, 0))
            attempt("hostname", lambda: call((170, 161), b"x", 1))
        """,
        "shared memory and queues": """
            from multiprocessing import shared_memory
            attempt("shmget", lambda: call((29, 194), 0x5D5D, 4096, 0o1666))
            attempt("shmat", lambda: call((30, 196), 0, 0, 0))
            attempt("msgget", lambda: call((68, 186), 0x5D5D, 0o1666))
            attempt("semget", lambda: call((64, 190), 0x5D5D, 1, 0o1666))
            attempt("mq_open", lambda: call((240, 180), b"@TOKEN@", 0o102, 0o666, 0))
            attempt("shm_open", lambda: shared_memory.SharedMemory("@TOKEN@", create=True, size=4096))
            attempt("memfd", lambda: os.memfd_create("x"))
            attempt("secret", lambda: call(447, 0))
            attempt("pkey", lambda: call((330, 289), 0, 0))
            attempt("userfaultfd", lambda: call((323, 282), 0))
        """,
        "the machine": """
            for what, numbers, *arguments in (
                ("reboot", (169, 142), 0, 0, 0, 0), ("settimeofday", (164, 170), 0, 0), ("adjtimex", (159, 171), 0), ("acct", (163, 89), 0),
                ("swapon", (167, 224), b"/x", 0), ("init_module", (175, 105), 0, 0, b""), ("delete_module", (176, 106), b"x", 0),
                ("quotactl", (179, 60), 0, 0, 0, 0), ("vhangup", (153, 58)), ("sync", (162, 81)), ("personality", (135, 92), 0x40000),
                ("clock_settime", (227, 112), 0, 0), ("sethostname", (170, 161), b"", 0), ("fallocate", (285, 47), 1, 0, 0, 1),
                ("splice", (275, 76), 0, 0, 1, 0, 1, 0), ("vmsplice", (278, 75), 1, 0, 0, 0), ("tee", (276, 77), 0, 1, 1, 0),
                ("setpgid", (109, 154), 0, 0), ("timer_create", (222, 107), 0, 0, 0), ("mlock", (149, 228), 0, 0), ("mbind", (237, 235), 0, 0, 0, 0, 0, 0),
            ):
                attempt(what, lambda: call(numbers, *arguments))
        """,
        "every call that is not on the list": """
            for number in range(600):
                if number not in @ALLOWED@:
                    try:
                        call(number, 0, 0, 0, 0, 0, 0)
                    except OSError as error:
                        if error.errno in (1, 38):
                            continue
                    print("ESCAPED by", number, ctypes.get_errno(), flush=True)
        """,
    },
}


def _killed(name: str, code: str, machine: str = "") -> Hostile:
    """Return a program that the kernel kills at once."""
    return Hostile(
        name=name, category="kernel", code=code, ends=frozenset({"runtime_error"}), machine=machine
    )


_MACHINE_CODE = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("{code}"))
run = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
attempt("machine code", lambda: run() or True)
"""

OTHER_ARCHITECTURES = (
    _killed("int 0x80", _MACHINE_CODE.format(code="b814000000cd80c3"), "x86_64"),  # 32-bit getpid
    _killed("int 0x80 fork", _MACHINE_CODE.format(code="b802000000cd80c3"), "x86_64"),
    _killed("x32 getpid", "attempt('x32', lambda: call(0x40000000 | 39))", "x86_64"),
    _killed(
        "x32 execve", "attempt('x32', lambda: call(0x40000000 | 520, b'/bin/true', 0, 0))", "x86_64"
    ),
    _killed("a negative number", "attempt('negative', lambda: call(-1 << 31))"),
)

REACHING = (
    *(
        program
        for category, programs in _CATEGORIES.items()
        for program in hostiles(category, programs)
    ),
    *OTHER_ARCHITECTURES,
)
