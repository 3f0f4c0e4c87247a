"""The process that programs are forked from: exec'ed once by a grader, walled in, warmed up, and asked for one child at a time.

It holds no expected output and no descriptor but its socket. A request brings the descriptors of one child (status,
payload, standard streams, and a pair of pipes for a conversation); the child confines itself, says `ready` on its status
pipe before the first byte of untrusted code is compiled, and closes it. How it ended, the zygote writes there afterwards:
`exit` or `signal`, the number, peak memory in KiB, CPU seconds. Runs in a bare interpreter; imports the standard library.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket  # type: ignore[import-not-found]
import array
import gc
import json
import os
import select
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ssd_ray.evaluation.sandbox import roles, walls
else:
    import roles
    import walls

PRELOADED = (
    *("array", "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math"),
    *("operator", "queue", "random", "re", "statistics", "string", "threading", "traceback", "typing", "warnings", "io", "ast"),
)
"""What programs import most; a module that is loaded here costs each of them nothing."""
_OWN_MODULES = ("zygote", "walls", "roles", "wire", "lcb_role")
_MESSAGE_BYTES, _MAX_DESCRIPTORS = 1 << 16, 8


def main(config: dict[str, Any]) -> None:
    """Raise the walls, say `up` or `denied`, serve until the grader hangs up."""
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fileno=config["socket"])
    try:
        walls.die_with_parent()
        if os.getppid() != config["parent"]:
            os._exit(1)
        zygote = _Zygote(channel, config)
    except (OSError, ImportError, KeyError) as error:
        channel.send(json.dumps({"denied": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    channel.send(b'{"up": true}')
    zygote.serve()
    os._exit(0)


def _fork_below(channel: Any) -> None:
    """Go on in a child, process 1 of the new process namespace, that cannot outlive this process, which only waits for it."""
    child = os.fork()
    if child:
        channel.close()
        os.waitpid(child, 0)
        os._exit(0)
    walls.die_with_parent()


class _Zygote:
    """The walls that are raised once, and the children alive."""

    def __init__(self, channel: Any, config: dict[str, Any]) -> None:
        self._channel, self._config = channel, config
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        if config["namespaces"]:
            walls.unshare(mounts=config["own_root"])
        walls.hide_memory()
        self._own_users = walls.may_change_user(interpreter_readable=config["interpreter_readable"])
        if config["namespaces"]:
            _fork_below(channel)
        if config["own_root"]:
            walls.enter_root(config["root"], config["readable"], config["devices"])
            self._config["interpreter_readable"] = True
        for name in PRELOADED:
            __import__(name)
        self._ruleset = -1
        if config["landlock"]:
            self._ruleset = walls.landlock_ruleset(config["readable"], config["listable"], config["devices"])
        self._filter = bytes.fromhex(config["filter"])
        self._own_pid = bytes.fromhex(config["own_pid"])
        self._num_children = 0
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        os.umask(0o077)
        os.chdir("/")
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Start a child for every request and report every end; returns when the grader hangs up."""
        channel_fd = self._channel.fileno()
        while True:
            for fd, _ in self._poll.poll():
                if fd != channel_fd:
                    self._report_end(fd)
                elif not self._start():
                    return

    def _start(self) -> bool:
        message, ancillary, _, _ = self._channel.recvmsg(_MESSAGE_BYTES, _socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS))
        if not message:
            return False
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        request = json.loads(message)
        self._num_children += 1
        pid = os.fork()
        if pid == 0:
            self._become(request, fds.tolist())
        status_fd, *others = fds
        for fd in others:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, status_fd)
        self._poll.register(pidfd, select.POLLIN)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [pidfd]))
        self._channel.sendmsg([b"started"], [rights])
        return True

    def _report_end(self, pidfd: int) -> None:
        pid, status_fd = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, code, usage = os.wait4(pid, 0)
        how = f"signal {os.WTERMSIG(code)}" if os.WIFSIGNALED(code) else f"exit {os.WEXITSTATUS(code)}"
        os.write(status_fd, f"{how} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime:.3f}\n".encode())
        os.close(status_fd)

    def _become(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        """In the child: confine it and play the role; never returns."""
        status_fd, payload_fd, *streams = fds
        try:
            pipes = self._take_descriptors(status_fd, payload_fd, streams)
            self._confine(request)
            with open(payload_fd, "rb") as file:
                lengths = [int(length) for length in file.readline().split()]
                units = [file.read(length).decode("utf-8", "surrogatepass") for length in lengths]
        except BaseException as error:
            os.write(status_fd, f"failed {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os.write(status_fd, b"ready\n")
        os.close(status_fd)
        for name in _OWN_MODULES:
            sys.modules.pop(name, None)
        roles.play(request["role"], units, request["entry_point"], pipes)

    def _take_descriptors(self, status_fd: int, payload_fd: int, streams: list[int]) -> list[int]:
        """Keep only what is this child's; returns the conversation's pipes, if there are any."""
        for number, fd in enumerate(streams[:3]):
            os.dup2(fd, number)
        pipes = streams[3:]
        low = 3
        for fd in sorted({status_fd, payload_fd, *pipes, *([self._ruleset] if self._ruleset >= 0 else [])}):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)
        return pipes

    def _confine(self, request: dict[str, Any]) -> None:
        os.setsid()
        uid = None
        if self._own_users:
            uid = walls.FIRST_UID + (self._config["first_user"] + self._num_children) % walls.NUM_UIDS
            for fd in (1, 2):
                if stat.S_ISFIFO(os.fstat(fd).st_mode):  # a conversation's is the machine's /dev/null
                    os.fchown(fd, uid, uid)
        walls.limit_resources(memory_bytes=request["memory_bytes"], cpu_s=request["cpu_s"], file_bytes=request["file_bytes"])
        walls.drop_privileges(uid, interpreter_readable=self._config["interpreter_readable"])
        walls.hide_memory()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if self._ruleset >= 0:
            walls.landlock_enter(self._ruleset)
            os.close(self._ruleset)
        if self._filter:
            own_pid = os.getpid().to_bytes(4, "little")
            walls.seccomp_enter(self._filter.replace(self._own_pid, own_pid))
