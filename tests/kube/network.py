"""Pods' network on one machine: a bridge, a network namespace an address, names, policies.

- A pod's namespace outlives its containers, as with a sandbox container of Kubernetes.
- Addresses are on-link, so a test can add a stand-in for any address (`attach(address=...)`).
- Names are lines of a hosts file for each namespace; every container mounts it.
- The name server of a pod is the pod itself, where none answers. So a name without a line fails at
  once. gRPC also asks for IPv6 addresses of names with a line, and waits for minutes else.
- Everything has the slot's prefix, so `clear` finds what a crashed process left.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kube.policies import World, ruleset

SLOTS = range(77, 97)
LOCKS = Path("/run/ssd-ray-kube")
"""Lock files of the slots; the kernel frees the lock of a process that ends."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A number held by one running double, and the names derived from it."""

    number: int
    lock: int
    """An open file; closing it frees the slot."""

    @property
    def prefix(self) -> str:
        """Start of every name: bridge, namespaces, containers, table."""
        return f"ssdk{self.number}"

    @property
    def gateway(self) -> str:
        """Address of the machine on the bridge."""
        return f"10.89.{self.number}.1"


def claim_slot() -> tuple[Slot, list[Slot]]:
    """Return a free slot, and all free slots: leftovers of their names have no owner."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    free = []
    for number in SLOTS:
        lock = os.open(LOCKS / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        free.append(Slot(number=number, lock=lock))
    if not free:
        raise RuntimeError(f"{len(SLOTS)} clusters run on this machine: end one of them")
    return free[0], free


def release(slots: Sequence[Slot]) -> None:
    """Free slots for other processes."""
    for slot in slots:
        os.close(slot.lock)


def note(slot: Slot, folder: Path | None) -> None:
    """Write the folder of a slot's owner into the lock file; None for nothing left to remove."""
    os.ftruncate(slot.lock, 0)
    os.pwrite(slot.lock, str(folder.resolve() if folder else "").encode(), 0)


def noted(slot: Slot) -> Path | None:
    """Return the folder of a crashed owner."""
    text = os.pread(slot.lock, 4096, 0).decode()
    return Path(text) if text else None


def command(*arguments: str, text: str | None = None) -> str:
    """Run a command. Return its output; an error has its message."""
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """The bridge of a slot with its pods."""

    def __init__(self, slot: Slot, folder: Path) -> None:
        self._slot = slot
        self._folder = folder
        self.resolver = folder / "resolv.conf"
        """The file `/etc/resolv.conf` of all pods."""
        self._rules = ""
        self._addresses: dict[str, str] = {}
        self._next = 2

    def start(self) -> None:
        """Make the bridge. Its address is there before and after all pods."""
        bridge = self._slot.prefix
        command("ip", "link", "add", bridge, "type", "bridge")
        command("ip", "address", "add", f"{self._slot.gateway}/24", "dev", bridge)
        command("ip", "link", "set", bridge, "up")
        # With this, packets from port to port of the bridge pass the rules for forwarded packets.
        switch = Path(f"/sys/class/net/{bridge}/bridge/nf_call_iptables")
        if not switch.exists():
            command("modprobe", "br_netfilter")
        switch.write_text("1")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.resolver.chmod(0o644)

    def attach(self, pod: str, address: str = "") -> str:
        """Make a pod's network namespace. Return its address."""
        index = self._next
        self._next = index + 1 if index < 250 else 2
        name = self.namespace(pod)
        end = f"{self._slot.prefix}v{index}"
        address = address or f"10.89.{self._slot.number}.{index}"
        command("ip", "netns", "add", name)
        command(*f"ip link add {end} type veth peer name eth0 netns {name}".split())
        command("ip", "link", "set", end, "master", self._slot.prefix, "up")
        text = f"address add {address}/32 dev eth0\nlink set lo up\nlink set eth0 up\n"
        command("ip", "-n", name, "-batch", "-", text=text + "route add default dev eth0\n")
        if not address.startswith(f"10.89.{self._slot.number}."):
            command("ip", "route", "add", f"{address}/32", "dev", self._slot.prefix)
        self._addresses[pod] = address
        return address

    def detach(self, pod: str) -> None:
        """Remove a pod's namespace; connections end without a last packet."""
        if self._addresses.pop(pod, None):
            command("ip", "netns", "delete", self.namespace(pod))

    def namespace(self, pod: str) -> str:
        """Return the name of a pod's network namespace."""
        return f"{self._slot.prefix}-{pod}"

    def enforce(self, world: World) -> None:
        """Replace the packet filter's rules if they change."""
        rules = ruleset(self._slot.prefix, world)
        if rules != self._rules:
            command("nft", "-f", "-", text=rules)
            self._rules = rules

    def hosts(self, namespace: str) -> Path:
        """Return the hosts file of a namespace."""
        path = self._folder / f"hosts-{namespace}"
        path.touch()
        path.chmod(0o644)
        return path

    def name(self, namespace: str, addresses: Mapping[str, str]) -> None:
        """Write names with their addresses, into the file that containers have mounted."""
        path = self.hosts(namespace)
        lines = ["127.0.0.1 localhost", f"{self._slot.gateway} kubernetes.default"]
        lines += [f"{address} {name}" for name, address in sorted(addresses.items())]
        text = "\n".join(lines) + "\n"
        if path.read_text() != text:
            path.write_text(text)


def clear(slot: Slot) -> None:
    """Remove the namespaces, links and table of a slot, whoever made them."""
    for line in command("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"{slot.prefix}-"):
            command("ip", "netns", "delete", name)
    if Path(f"/sys/class/net/{slot.prefix}").exists():
        command("ip", "link", "delete", slot.prefix)
    if f"table inet {slot.prefix}\n" in command("nft", "list", "tables"):
        command("nft", "delete", "table", "inet", slot.prefix)
