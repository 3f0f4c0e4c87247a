"""Alerts of `k8s/components/monitoring` fire, and its dashboard is one of Grafana."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
COMPONENT = TOP / "k8s/components/monitoring"
CASES = TOP / "tests/support/alert_cases.yaml"
NAME = re.compile(r"\b(?:ray|autoscaler)_\w+")


@functools.cache
def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())
    return [rule for group in document["spec"]["groups"] for rule in group["rules"]]


@functools.cache
def panels() -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = json.loads((COMPONENT / "dashboard.json").read_text())["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def names(texts: Sequence[str]) -> set[str]:
    return {name for text in texts for name in NAME.findall(text)}


def test_every_alert_says_what_to_do_and_the_page_lists_it() -> None:
    page = (TOP / "docs" / "cluster.md").read_text()
    assert len(rules()) >= 9
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "action"}
        assert f"`{rule['alert']}`" in page


def test_the_dashboard_is_one_of_grafana() -> None:
    document = json.loads((COMPONENT / "dashboard.json").read_text())
    (variable,) = document["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    numbers = [panel["id"] for panel in document["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in document["panels"]]
    assert len(set(places)) == len(places)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = re.search(r"by \((\w+)\)", target["expr"])
            assert labels == ({grouped[1]} if grouped else set()), target


def test_every_gauge_of_sampling_is_on_the_dashboard() -> None:
    from ssd_ray.inference import gauges

    own = {f"ray_ssd_ray_{name}" for name in (*gauges._GAUGES, *gauges._ENGINE_GAUGES)}
    assert own <= names(expressions())


def test_alerts_fire_where_their_causes_are_made(tmp_path: Path) -> None:
    cases = yaml.safe_load(CASES.read_text())
    tested = {
        case["alertname"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in rules()}
    if shutil.which("promtool") is None:
        pytest.skip("Debian's package prometheus, with promtool, is not installed")
    groups = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]
    checked = tmp_path / "checked.yaml"
    checked.write_text(yaml.safe_dump(groups))
    run(["promtool", "check", "rules", str(checked)])
    for rule in (rule for group in groups["groups"] for rule in group["rules"]):
        del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    (tmp_path / "cases.yaml").write_text(CASES.read_text())
    run(["promtool", "test", "rules", str(tmp_path / "cases.yaml")])


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
