"""The zygote: a confined and warmed-up process that forks a child for each program.

The life of a child:

1. The zygote forks it ahead of its program, as a spare.
2. It confines itself and waits on a socket for a request with its descriptors: payload, standard
   streams, two pipes for a conversation.
3. It writes `ready` to its status pipe and closes it. No untrusted code is compiled earlier.
4. It plays its role.
5. The zygote writes the child's end to the status pipe: `exit` or `signal`, the number, peak memory
   in KiB, CPU seconds.

The grader kills a child by its pidfd. Without pidfds it closes the child's kill pipe, and the
zygote kills the child. The zygote holds no expected output. Its descriptors are its socket, its
standard streams, and pipes of its own.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import array
import contextlib
import gc
import json
import marshal
import os
import select
import sys
from _frozen_importlib_external import spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ssd_ray.evaluation.sandbox.inside import landlock, mounts, roles, walls

    # Made by `levels.config`, completed by `spawning`, packed by `bootstrap.image`.
    Config = dict[str, Any]
else:
    import landlock
    import mounts
    import roles
    import walls

_MESSAGE_BYTES = 1 << 16
_MAX_DESCRIPTORS = 8


def main(config: Config) -> None:
    """Raise the walls, report `up` or `denied`, and serve until the grader hangs up."""
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
    """Continue in a child, process 1 of the new process namespace.

    This process waits for the child, which dies with it.
    """
    child = os.fork()
    if child:
        channel.close()
        os.waitpid(child, 0)
        os._exit(0)
    walls.die_with_parent()


class _Packages:
    """An importer of the allowed packages alone, not of their neighbors in site-packages."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        place = self._places.get(name)
        if place is None:
            return None
        return spec_from_file_location(
            name, f"{place}/__init__.py", submodule_search_locations=[place]
        )


class _Zygote:
    """The walls raised once, and the children alive."""

    def __init__(self, channel: Any, config: Config) -> None:
        self._channel = channel
        self._config = config
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        # If memory runs out, the kernel should kill programs before the grader.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        if config["namespaces"]:
            walls.unshare(mounts=config["own_root"])
        walls.hide_memory()
        self._own_users = walls.may_change_user(interpreter_readable=config["interpreter_readable"])
        if config["namespaces"]:
            _fork_below(channel)
        if config["own_root"]:
            mounts.enter_root(config["root"], config["readable"], config["devices"])
            self._config["interpreter_readable"] = True
        sys.meta_path.append(_Packages(config["packages"]))
        self._own_filter = bytes.fromhex(config["own_filter"])
        self._own_pid = bytes.fromhex(config["own_pid"])
        self._num_children = 0
        # Python writes a byte to this pipe at each SIGCHLD, so one poll waits for ends too.
        self._wakeup_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(write_fd)
        self._poll = select.poll()
        for fd in (channel.fileno(), self._wakeup_fd):
            self._poll.register(fd, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        self._kill_pipes: dict[int, int] = {}
        os.umask(0o077)
        os.chdir("/")
        walls.bound_privileges(
            own_users=self._own_users, interpreter_readable=config["interpreter_readable"]
        )
        if config["landlock"]:
            landlock.enter(
                landlock.make_ruleset(config["readable"], config["listable"], config["devices"])
            )
        if config["filter"]:
            walls.seccomp_enter(bytes.fromhex(config["filter"]))
        roles.warm_up()
        # A program must not import the modules of the sandbox. They are removed before any fork, so
        # that no child copies memory pages for it.
        for name in config["own_modules"]:
            del sys.modules[name]
        # A collection in a child would write to every object's header and so copy its page.
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Start a child for every request and report every end, until the grader hangs up."""
        channel_fd = self._channel.fileno()
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            for kill_pipe in ready & self._kill_pipes.keys():
                self._poll.unregister(kill_pipe)
                os.kill(self._kill_pipes[kill_pipe], _signal.SIGKILL)
            if self._wakeup_fd in ready:
                self._report_ends()
            if channel_fd in ready and not self._start():
                return

    def _start(self) -> bool:
        """Fork a spare child, and send the grader its handle, its socket and its status pipe.

        Returns:
            False if the grader hung up.
        """
        if not self._channel.recv(_MESSAGE_BYTES):
            return False
        self._num_children += 1
        own_pid = os.getpid()
        status_read, status_fd = os.pipe()
        theirs, ours = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._become(ours, status_fd, own_pid)
        ours.close()
        # The grader's handle is a pidfd, or else the write end of a kill pipe.
        kill_pipe, handle = (-1, os.pidfd_open(pid)) if self._config["pidfds"] else os.pipe()
        self._children[pid] = (status_fd, kill_pipe)
        if kill_pipe >= 0:
            self._kill_pipes[kill_pipe] = pid
            self._poll.register(kill_pipe, select.POLLIN)
        fds = array.array("i", [handle, theirs.fileno(), status_read])
        self._channel.sendmsg([b"spare %d" % pid], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        theirs.close()
        os.close(status_read)
        os.close(handle)
        return True

    def _report_ends(self) -> None:
        os.read(self._wakeup_fd, _MESSAGE_BYTES)
        # Signals of several ends may be merged into one, so all ends are collected.
        while self._children:
            pid, code, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            status_fd, kill_pipe = self._children.pop(pid)
            if kill_pipe >= 0:
                with contextlib.suppress(KeyError):  # the grader closed its end already
                    self._poll.unregister(kill_pipe)
                del self._kill_pipes[kill_pipe]
                os.close(kill_pipe)
            how = (
                f"signal {os.WTERMSIG(code)}"
                if os.WIFSIGNALED(code)
                else f"exit {os.WEXITSTATUS(code)}"
            )
            cpu_s = usage.ru_utime + usage.ru_stime
            with contextlib.suppress(BrokenPipeError):  # the grader no longer waits for this end
                os.write(status_fd, f"{how} {usage.ru_maxrss} {cpu_s:.3f}\n".encode())
            os.close(status_fd)

    def _become(self, channel: Any, status_fd: int, parent: int) -> NoReturn:
        """Confine this process, a child, wait for a request and play its role; never returns."""
        try:
            self._close_all_but(channel.fileno(), status_fd)
            own_user = self._confine()
            # If the zygote died before the child asked for a signal at its death, none comes.
            if os.getppid() != parent:
                os._exit(1)
            request, fds = _receive(channel)
            channel.close()
            payload_fd, *streams = fds
            for number, fd in enumerate(streams[:3]):
                os.dup2(fd, number)
            pipes = streams[3:]
            self._close_all_but(status_fd, payload_fd, *pipes)
            payload = os.pread(payload_fd, request["payload_bytes"], 0)
            os.close(payload_fd)
            ends = request["unit_ends"]
            units = [
                payload[start:end].decode("utf-8", "surrogatepass")
                for start, end in zip((0, *ends), ends, strict=False)
            ]
            walls.limit_resources(
                memory_bytes=request["memory_bytes"],
                cpu_s=request["cpu_s"],
                file_bytes=request["file_bytes"],
                num_threads=request["num_threads"] if own_user else None,
            )
            # Last, because it forbids calls needed above.
            if self._own_filter:
                walls.seccomp_enter(
                    self._own_filter.replace(self._own_pid, os.getpid().to_bytes(4, "little"))
                )
        # No program has run yet. Whatever failed, the grader reads it from the status pipe.
        except BaseException as error:
            os.write(status_fd, f"failed {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os.write(status_fd, b"ready\n")
        os.close(status_fd)
        roles.play(request["role"], units, request["entry_point"], pipes)

    def _close_all_but(self, *kept: int) -> None:
        low = 3
        for fd in sorted(fd for fd in kept if fd >= low):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)

    def _confine(self) -> bool:
        """Raise the walls common to all programs.

        Returns:
            True if the process has a user id of its own.
        """
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.setsid()
        if self._own_users:
            uid = (
                walls.FIRST_UID + (self._config["first_user"] + self._num_children) % walls.NUM_UIDS
            )
            walls.become(uid, interpreter_readable=self._config["interpreter_readable"])
        walls.hide_memory()
        # In a process namespace the zygote is process 1, whose end is the end of all.
        if not self._config["namespaces"]:
            walls.die_with_parent()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        return self._own_users


def _receive(channel: Any) -> tuple[dict[str, Any], list[int]]:
    """Return a request and its descriptors, or end this process if the grader hung up."""
    message, ancillary, _, _ = channel.recvmsg(
        _MESSAGE_BYTES, _socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS)
    )
    if not message:
        os._exit(0)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return marshal.loads(message), fds.tolist()
