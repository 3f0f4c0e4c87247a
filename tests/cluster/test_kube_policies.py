"""Network policies become the rules that their text states."""

from __future__ import annotations

from typing import Any

from tests.kube.policies import Peer, World, matches, ruleset

Object = dict[str, Any]


def _peer(name: str, address: str, namespace: str = "default") -> Peer:
    return Peer(namespace=namespace, labels={"app": name}, address=address, ports={"dash": 8265})


HEAD = _peer("head", "10.0.0.2")
GRADER = _peer("grader", "10.0.0.3")
FOREIGN = _peer("head", "10.0.0.4", "other")


def _rules(spec: Object, cut: tuple[str, ...] = ()) -> str:
    policy = {"metadata": {"name": "p", "namespace": "default"}, "spec": spec}
    world = World(
        peers=(HEAD, GRADER, FOREIGN),
        policies=(policy,),
        namespaces={"default": {"name": "default"}, "other": {"name": "other"}},
        cut=cut,
    )
    return ruleset("t", world)


def _chain(rules: str, name: str) -> list[str]:
    lines = rules.splitlines()
    begin = lines.index(f"chain {name} {{") + 1
    return lines[begin : lines.index("}", begin)]


def test_a_pod_without_a_policy_is_free() -> None:
    rules = _rules({"podSelector": {"matchLabels": {"app": "none"}}})
    assert "jump" not in rules


def test_an_empty_policy_denies_a_direction() -> None:
    rules = _rules({"podSelector": {"matchLabels": {"app": "grader"}}, "policyTypes": ["Egress"]})
    assert _chain(rules, "egress_10_0_0_3") == ["drop"]
    assert "ip saddr 10.0.0.3 jump egress_10_0_0_3" in _chain(rules, "input")
    assert "ingress" not in rules


def test_peers_are_of_the_own_namespace_unless_named() -> None:
    head = {"podSelector": {"matchLabels": {"app": "head"}}}
    spec = {"podSelector": {"matchLabels": {"app": "grader"}}}
    ingress = _rules({**spec, "ingress": [{"from": [head]}]})
    assert _chain(ingress, "ingress_10_0_0_3") == ["ip saddr 10.0.0.2 return", "drop"]
    everywhere = _rules({**spec, "ingress": [{"from": [{**head, "namespaceSelector": {}}]}]})
    assert _chain(everywhere, "ingress_10_0_0_3") == [
        "ip saddr 10.0.0.2 return",
        "ip saddr 10.0.0.4 return",
        "drop",
    ]


def test_ports_by_number_name_range_and_protocol() -> None:
    ports: list[Object] = [
        {"port": 53, "protocol": "UDP"},
        {"port": "dash"},
        {"port": 10000, "endPort": 10010},
        {"port": "unknown"},
    ]
    spec = {"podSelector": {"matchLabels": {"app": "grader"}}, "ingress": [{"ports": ports}]}
    assert _chain(_rules(spec), "ingress_10_0_0_3") == [
        "udp dport 53 return",
        "tcp dport 8265 return",
        "tcp dport 10000-10010 return",
        "drop",
    ]


def test_a_block_has_exceptions() -> None:
    block = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16", "10.0.0.0/8"]}}
    spec = {"podSelector": {"matchLabels": {"app": "grader"}}, "egress": [{"to": [block]}]}
    assert _chain(_rules(spec), "egress_10_0_0_3") == [
        "ip daddr 0.0.0.0/0 ip daddr != { 169.254.0.0/16, 10.0.0.0/8 } return",
        "drop",
    ]


def test_replies_pass_but_not_those_of_a_cut_node() -> None:
    rules = _chain(_rules({"podSelector": {}}, cut=("10.0.0.2",)), "forward")
    assert rules[1:4] == [
        "ip saddr 10.0.0.2 drop",
        "ip daddr 10.0.0.2 drop",
        "ct state established,related accept",
    ]


def test_selectors_match_labels_and_expressions() -> None:
    labels = {"app": "head", "zone": "a"}
    assert matches({}, labels)
    assert matches({"matchLabels": {"app": "head"}}, labels)
    for operator, values, expected in (
        ("In", ["a", "b"], True),
        ("NotIn", ["a"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        term = {"key": "zone", "operator": operator, "values": values}
        assert matches({"matchExpressions": [term]}, labels) == expected
