"""What operators look at and are woken by: every name in it is one that the service says."""

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.metrics import fully_measured_service, http_get
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
TESTS = ROOT / "deploy/prometheus/alerts.test.yaml"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
NAME = re.compile(r"\b(?:conversations_|grpc_server_|process_|python_)\w+|\bup\b")
LABEL = re.compile(r"\{([^}]*)\}")
OF_PROMETHEUS = {"up", "job", "instance", "le"}  # added by a scrape, or by every histogram


def panels() -> list[dict[str, Any]]:
    """All panels, rows included."""
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard and of the alerts, with where it is."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.fixture(scope="module")
async def said(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a service with everything switched on says: the labels of each name."""
    found: dict[str, set[str]] = {}
    async with fully_measured_service(service.url, tmp_path_factory.mktemp("said")) as (running, *_):
        _, _, text = await http_get(running.metrics)
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("where, expression", list(expressions()), ids=lambda value: value[:40])
async def test_every_name_is_said(said: dict[str, set[str]], where: str, expression: str) -> None:
    """A query that asks for a name or a label that is not there shows an empty panel, or never fires."""
    without_text = re.sub(r'"[^"]*"', '""', expression)
    names = set(NAME.findall(LABEL.sub("", without_text))) - {"process_"}
    assert names, expression
    assert set() == names - said.keys() - OF_PROMETHEUS
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", without_text):
        assert set() == set(re.findall(r"(\w+)\s*[=!]", matchers)) - said.get(name, set()) - OF_PROMETHEUS, name
    grouped = {
        label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", without_text) for label in group.split(",")
    }
    assert set() == grouped - set().union(*(said.get(name, set()) for name in names)) - OF_PROMETHEUS


def test_panels_are_told_apart() -> None:
    """Ids are unique and every panel says what it shows."""
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    assert [] == [panel["title"] for panel in panels() if panel["type"] != "row" and not panel.get("description")]


def test_panels_do_not_overlap() -> None:
    """Each has a place of its own on a grid of 24 columns."""
    places = [(panel["title"], panel["gridPos"]) for panel in panels()]
    assert [] == [title for title, at in places if at["x"] + at["w"] > 24 or min(at.values()) < 0]
    assert [] == [(one, two) for (one, a), (two, b) in combinations(places, 2) if _overlap(a, b)]


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    return not (beside or above)


def test_the_data_source_is_chosen_by_who_looks() -> None:
    """A board that names somebody's data source shows nothing elsewhere."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert ("datasource", "prometheus") == (variables["datasource"]["type"], variables["datasource"]["query"])
    asked = [panel for panel in panels() if panel["type"] != "row"]
    sources = {target["datasource"]["uid"] for panel in asked for target in panel["targets"]}
    assert {"${datasource}"} == sources | {panel["datasource"]["uid"] for panel in asked}
    text = json.dumps(DASHBOARD)
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert set() == used - variables.keys()


def anchors(path: Path) -> set[str]:
    """Where links into a page can point."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """Whoever is woken finds the section about it; how urgent it is is one of two words."""
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]


def test_every_alert_is_tested() -> None:
    """Each is seen to fire."""
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert {rule["alert"] for rule in RULES} == fired


def test_kubernetes_has_the_same_alerts() -> None:
    """The rules of the operator are those that promtool tests; `make generate` copies them."""
    rule = yaml.safe_load((ROOT / "deploy/kubernetes/components/monitoring/prometheus-rule.yaml").read_text())
    assert yaml.safe_load(ALERTS.read_text()) == rule["spec"]


@pytest.mark.tool("promtool")
@pytest.mark.parametrize("how, file", [("check", ALERTS), ("test", TESTS)], ids=["check", "test"])
def test_promtool_agrees(how: str, file: Path) -> None:
    """Prometheus itself reads the rules, and they fire as the tests say."""
    done = subprocess.run(
        ["promtool", how, "rules", file.name], cwd=file.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert 0 == done.returncode, done.stdout + done.stderr
