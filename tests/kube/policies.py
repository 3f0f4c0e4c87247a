"""Network policies as rules of nftables.

- A pod without a policy in a direction may use it freely; with one, only as some policy allows.
- Replies to an accepted connection pass.
- The machine reaches its own pods, as a node of Kubernetes does.
- A node that is cut off exchanges no packet with anything, replies included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
_OPERATORS: dict[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, values: value is not None,
    "DoesNotExist": lambda value, values: value is None,
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A pod as the network sees it."""

    namespace: str
    labels: Mapping[str, str]
    address: str
    ports: Mapping[str, int]
    """Numbers of its named ports."""


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Return True if a label selector accepts the labels; an empty one accepts all."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(
        _OPERATORS[each["operator"]](labels.get(each["key"]), each.get("values", []))
        for each in selector.get("matchExpressions", [])
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that decides about packets."""

    peers: Sequence[Peer]
    policies: Sequence[Object]
    namespaces: Mapping[str, Mapping[str, str]]
    """Labels by namespace."""
    cut: Sequence[str] = ()
    """Addresses without any traffic."""


def ruleset(table: str, world: World) -> str:
    """Return the text for `nft -f -` to replace the table in one transaction."""
    chains: list[str] = []
    jumps: dict[str, list[str]] = {"Ingress": [], "Egress": []}
    for peer in world.peers:
        for direction, side in (("Ingress", "daddr"), ("Egress", "saddr")):
            selected = [each for each in world.policies if _applies(each, peer, direction)]
            if selected:
                name = f"{direction.lower()}_{peer.address.replace('.', '_')}"
                chains += [
                    f"chain {name} {{",
                    *_rules(selected, peer, direction, world),
                    "drop",
                    "}",
                ]
                jumps[direction].append(f"ip {side} {peer.address} jump {name}")
    silence = [f"ip {side} {address} drop" for address in world.cut for side in ("saddr", "daddr")]
    known = ["ct state established,related accept"]
    body = [
        *chains,
        *_chain("forward", [*silence, *known, *jumps["Egress"], *jumps["Ingress"]]),
        *_chain("input", [*silence, *known, *jumps["Egress"]]),
        *_chain("output", silence),
    ]
    empty = f"table inet {table} {{}}\ndelete table inet {table}\n"
    return empty + "\n".join([f"table inet {table} {{", *body, "}"]) + "\n"


def _chain(hook: str, rules: Sequence[str]) -> list[str]:
    opening = f"type filter hook {hook} priority 0; policy accept;"
    return [f"chain {hook} {{", opening, *rules, "}"]


def _applies(policy: Object, peer: Peer, direction: str) -> bool:
    spec = policy["spec"]
    default = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    return (
        policy["metadata"].get("namespace", "default") == peer.namespace
        and direction in spec.get("policyTypes", default)
        and matches(spec.get("podSelector", {}), peer.labels)
    )


def _rules(policies: Sequence[Object], peer: Peer, direction: str, world: World) -> list[str]:
    """Return the rules of traffic allowed by some policy of a pod."""
    key, side = ("from", "saddr") if direction == "Ingress" else ("to", "daddr")
    rules = []
    for policy in policies:
        namespace = policy["metadata"].get("namespace", "default")
        for entry in policy["spec"].get(direction.lower()) or []:
            for match, other in _targets(entry.get(key) or [], namespace, side, world):
                owner = peer if direction == "Ingress" else other
                rules += [f"{match}{port}return" for port in _ports(entry, owner)]
    # An allowed egress still has to pass the ingress rules of its target, hence "return".
    return list(dict.fromkeys(rules))


def _targets(
    entries: Sequence[Object], namespace: str, side: str, world: World
) -> list[tuple[str, Peer | None]]:
    """Return matches of addresses, each with its pod if there is one."""
    if not entries:
        return [("", None)]
    targets: list[tuple[str, Peer | None]] = []
    for entry in entries:
        if "ipBlock" in entry:
            block = entry["ipBlock"]
            excluded = ", ".join(block.get("except", []))
            exception = f"ip {side} != {{ {excluded} }} " if excluded else ""
            targets.append((f"ip {side} {block['cidr']} {exception}", None))
            continue
        spaces = {namespace}
        if "namespaceSelector" in entry:
            selector = entry["namespaceSelector"]
            spaces = {
                name for name, labels in world.namespaces.items() if matches(selector, labels)
            }
        targets += [
            (f"ip {side} {peer.address} ", peer)
            for peer in world.peers
            if peer.namespace in spaces and matches(entry.get("podSelector", {}), peer.labels)
        ]
    return targets


def _ports(entry: Object, owner: Peer | None) -> list[str]:
    """Return matches of ports; a named port without a pod of this name matches nothing."""
    if not entry.get("ports"):
        return [""]
    matched = []
    for each in entry["ports"]:
        protocol = each.get("protocol", "TCP").lower()
        port = each.get("port")
        if isinstance(port, str):
            port = owner.ports.get(port) if owner else None
            if port is None:
                continue
        if port is None:
            matched.append(f"meta l4proto {protocol} ")
        else:
            end = f"-{each['endPort']}" if "endPort" in each else ""
            matched.append(f"{protocol} dport {port}{end} ")
    return matched
