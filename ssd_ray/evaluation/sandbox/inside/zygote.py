"""The process that programs are forked from: exec'ed once by a grader, walled in, warmed up, and asked for one child at a time.

It holds no expected output and no descriptor but its socket. A child is forked ahead of its program: it confines itself and
waits on a socket for a request with its descriptors (payload, standard streams, a pair of pipes for a conversation). It says
`ready` on its status pipe before the first byte of untrusted code is compiled, and closes it. How it ended, the zygote writes
there afterwards: `exit` or `signal`, the number, peak memory in KiB, CPU seconds. The grader kills it by a pidfd or, where the
kernel has none, by letting go of its leash, a pipe to the zygote, which then kills. Runs in a bare interpreter; imports the
standard library.
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

    from ssd_ray.evaluation.sandbox.inside import roles, walls
else:
    import roles
    import walls

_OWN_MODULES = (
    *(
        "zygote",
        "walls",
        "roles",
        "wire",
        "foreign",
        "restored",
        "objects",
        "definitions",
        "check_role",
    ),
    *("shortage", "lcb_role", "lcb_stdin"),
)
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


class _Packages:
    """Finds the packages that programs may import beside the standard library, and nothing that lies beside them."""

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
        sys.meta_path.append(_Packages(config["packages"]))
        self._own_filter = bytes.fromhex(config["own_filter"])
        self._own_pid = bytes.fromhex(config["own_pid"])
        self._num_children = 0
        self._bell, bell_write = os.pipe()
        os.set_blocking(bell_write, False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _signal.set_wakeup_fd(bell_write)
        self._poll = select.poll()
        for fd in (channel.fileno(), self._bell):
            self._poll.register(fd, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}
        self._leashes: dict[int, int] = {}
        os.umask(0o077)
        os.chdir("/")
        walls.bound_privileges(
            own_users=self._own_users, interpreter_readable=config["interpreter_readable"]
        )
        if config["landlock"]:
            walls.landlock_enter(
                walls.landlock_ruleset(config["readable"], config["listable"], config["devices"])
            )
        if config["filter"]:
            walls.seccomp_enter(bytes.fromhex(config["filter"]))
        roles.rehearse()
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Start a child for every request and report every end; returns when the grader hangs up."""
        channel_fd = self._channel.fileno()
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            for leash in ready & self._leashes.keys():
                self._poll.unregister(leash)
                os.kill(self._leashes[leash], _signal.SIGKILL)
            if self._bell in ready:
                self._report_ends()
            if channel_fd in ready and not self._start():
                return

    def _start(self) -> bool:
        """Fork a spare: a child that confines itself and waits on a socket of its own to be told which program it is."""
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
        leash, handle = (-1, os.pidfd_open(pid)) if self._config["pidfds"] else os.pipe()
        self._children[pid] = (status_fd, leash)
        if leash >= 0:
            self._leashes[leash] = pid
            self._poll.register(leash, select.POLLIN)
        fds = array.array("i", [handle, theirs.fileno(), status_read])
        self._channel.sendmsg([b"spare %d" % pid], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        theirs.close()
        os.close(status_read)
        os.close(handle)
        return True

    def _report_ends(self) -> None:
        os.read(self._bell, _MESSAGE_BYTES)
        while self._children:
            pid, code, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            status_fd, leash = self._children.pop(pid)
            if leash >= 0:
                with contextlib.suppress(KeyError):  # it was pulled already
                    self._poll.unregister(leash)
                del self._leashes[leash]
                os.close(leash)
            how = (
                f"signal {os.WTERMSIG(code)}"
                if os.WIFSIGNALED(code)
                else f"exit {os.WEXITSTATUS(code)}"
            )
            with contextlib.suppress(BrokenPipeError):  # the grader waited long enough for its end
                os.write(
                    status_fd,
                    f"{how} {usage.ru_maxrss} {usage.ru_utime + usage.ru_stime:.3f}\n".encode(),
                )
            os.close(status_fd)

    def _become(self, channel: Any, status_fd: int, parent: int) -> NoReturn:
        """In the child: confine it, wait for a request, play its role; never returns."""
        try:
            self._close_all_but(channel.fileno(), status_fd)
            own_user = self._confine()
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
            if self._own_filter:
                walls.seccomp_enter(
                    self._own_filter.replace(self._own_pid, os.getpid().to_bytes(4, "little"))
                )
        except BaseException as error:
            os.write(status_fd, f"failed {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os.write(status_fd, b"ready\n")
        os.close(status_fd)
        for name in _OWN_MODULES:
            sys.modules.pop(name, None)
        roles.play(request["role"], units, request["entry_point"], pipes)

    def _close_all_but(self, *kept: int) -> None:
        low = 3
        for fd in sorted(fd for fd in kept if fd >= low):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)

    def _confine(self) -> bool:
        """What does not depend on the program; returns whether it has a user id to itself."""
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.setsid()
        if self._own_users:
            uid = (
                walls.FIRST_UID + (self._config["first_user"] + self._num_children) % walls.NUM_UIDS
            )
            walls.become(uid, interpreter_readable=self._config["interpreter_readable"])
        walls.hide_memory()
        if not self._config[
            "namespaces"
        ]:  # there, the zygote is process 1 and takes everybody with it
            walls.die_with_parent()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        return self._own_users


def _receive(channel: Any) -> tuple[dict[str, Any], list[int]]:
    """A request and its descriptors; ends the process where the grader needs no more of them."""
    message, ancillary, _, _ = channel.recvmsg(
        _MESSAGE_BYTES, _socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS)
    )
    if not message:
        os._exit(0)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return marshal.loads(message), fds.tolist()
