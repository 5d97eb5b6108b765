"""What deploy/ has for Prometheus and Grafana fits the metrics page, and the docs both."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import typer
import yaml

from tests.nodes import running_node
from tests.server.test_metrics import samples
from tests.server.test_metrics_page import authorised, node, page  # noqa: F401  # fixtures
from tests.server.test_serve import until
from tigrislike.cli import app
from tigrislike.counting import Table
from tigrislike.families import FAMILIES, shown_name
from tigrislike.node import TASKS
from tigrislike.s3api.errors import ERRORS

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "tigrislike.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RUNBOOKS = (REPOSITORY / "docs" / "runbooks.md").read_text(encoding="utf-8")

OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that it adds."""

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def queries() -> list[str]:
    return [*dashboard_queries(), *(rule["expr"] for rule in ALERTS)]


# --- what a query asks for


class Selector(NamedTuple):
    """A metric, and what its labels are to be: (label, operator, value)."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(query: str) -> list[Selector]:
    """Every selector of a metric of ours in a query."""
    found = re.findall(r"\b(tigrislike_[a-z_]+)(?:\{([^}]*)\})?", query)
    return [
        Selector(metric, tuple(re.findall(r'([a-z_]+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers)))
        for metric, matchers in found
    ]


def grouped_by(query: str) -> set[str]:
    return {label.strip() for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in labels.split(",")}


def family_of(metric: str) -> tuple[str, set[str]]:
    """The family of a series' name, and its labels. Raises KeyError where there is no such series."""
    for name, family in FAMILIES.items():
        parts = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        if metric in {shown_name(name) + part for part in parts}:
            return name, {*family.labels}
    raise KeyError(metric)


def matches(matchers: tuple[tuple[str, str, str], ...], labels: dict[str, str]) -> bool:
    def holds(label: str, operator: str, value: str) -> bool:
        equal = re.fullmatch(value, labels[label]) is not None if "~" in operator else labels[label] == value
        return equal != operator.startswith("!")

    return all(holds(*matcher) for matcher in matchers if matcher[0] not in OF_PROMETHEUS)


@pytest.fixture(scope="module")
def series(page: str) -> dict[str, list[dict[str, str]]]:  # noqa: F811
    """The labels of every series that a page shows, or could show, by its family."""
    shown: dict[str, list[dict[str, str]]] = {name: [] for name in FAMILIES}
    for metric, labels in samples(page):
        shown[family_of(metric)[0]].append(dict(labels))
    for name, *values in Table(1, ["PutObject"], ERRORS, TASKS).columns:
        shown[name].append(dict(zip(FAMILIES[name].labels, values, strict=True)))
    for task in TASKS:
        shown["queue_failing_items"].append({"region": "local", "task": task})
    return shown


def test_every_metric_that_is_asked_for_exists_with_its_labels_and_their_values(
    series: dict[str, list[dict[str, str]]],
) -> None:
    asked = 0
    for query in queries():
        labels_of_query = set(OF_PROMETHEUS)
        for selector in selectors(query):
            asked += 1
            name, labels = family_of(selector.metric)
            labels_of_query |= labels
            assert {label for label, _, _ in selector.matchers} <= labels | OF_PROMETHEUS, query
            assert any(matches(selector.matchers, each) for each in series[name]), query
        assert grouped_by(query) <= labels_of_query, query
    assert asked > len(queries()) / 2
    assert not re.search(r"tigrislike_(?![a-z])", "".join(queries()))


def test_legends_name_labels_that_their_queries_keep() -> None:
    for panel in panels():
        for target in panel.get("targets", []):
            kept = grouped_by(target["expr"]) | OF_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, target


def test_panels_have_ids_of_their_own_and_lie_beside_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells |= mine
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{at}", "expr": re.sub(r"\$__rate_interval", "5m", query)}
        for at, query in enumerate(dashboard_queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))
    promtool("check", "rules", str(DEPLOY / "prometheus" / "alerts.yml"))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml"))


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- alerts


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def test_every_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for each in tests for case in each["alert_rule_test"]]
    assert set(cases) == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^### (\w+)\n\n(.+?)(?=\n\n#|\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in sections] == re.findall(r"^### (\w+)$", RUNBOOKS, re.MULTILINE)
    assert {name for name, _ in sections} == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
    named = set(re.findall(r"\bTigrislike[A-Z]\w+", RUNBOOKS))
    assert named <= {rule["alert"] for rule in ALERTS}


def test_runbooks_name_commands_settings_and_metrics_that_exist() -> None:
    commands: Any = typer.main.get_command(app)
    for words in re.findall(r"`tigrislike ([a-z -]+)", RUNBOOKS):
        group, *rest = words.split()
        command = commands.commands[group]
        if hasattr(command, "commands") and rest:
            assert rest[0] in command.commands, words
    settings = (REPOSITORY / "tigrislike" / "config.py").read_text(encoding="utf-8")
    for flag in set(re.findall(r"`--([a-z-]+)", RUNBOOKS)) - {"endpoint"}:
        assert f'"{flag}"' in settings or flag.replace("-", "_") in settings, flag
    for metric in re.findall(r"`(tigrislike_[a-z_]+)", RUNBOOKS):
        family_of(metric)


def test_every_metric_in_the_docs_exists() -> None:
    for file in (*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"):
        for metric in re.findall(r"`(tigrislike_[a-z_]+[a-z])", file.read_text(encoding="utf-8")):
            assert metric in map(shown_name, FAMILIES) or family_of(metric)


# --- Prometheus itself


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
@pytest.mark.parametrize("with_token", [False, True])
def test_prometheus_scrapes_a_node_with_the_configuration_that_is_shipped(tmp_path: Path, with_token: bool) -> None:
    token = tmp_path / "token"
    token.write_text("secret-of-prometheus\n")
    flags = [f"--metrics-auth={token}"] if with_token else []
    with running_node(tmp_path / "data", *flags) as running:
        text = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        text = text.replace("127.0.0.1:9000", f"127.0.0.1:{running.port}").replace("15s", "1s").replace("10s", "1s")
        if with_token:
            text = text.replace("/etc/prometheus/tigrislike-token", str(token))
            text = re.sub(r"    # (authorization:|  type:|  credentials_file:)", r"    \1", text)
        (tmp_path / "prometheus.yml").write_text(text)
        shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def told(query: str) -> list[Any]:
                url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(query)}"
                try:
                    with urllib.request.urlopen(url, timeout=10) as answer:
                        return list(json.load(answer)["data"]["result"])
                except OSError:
                    return []

            until(lambda: [each["value"][1] for each in told("up")] == ["1"])
            until(lambda: bool(told("tigrislike_queue_oldest_due_seconds")))
            firing = {each["metric"]["alertname"] for each in told('ALERTS{alertstate="firing"}')}
            assert firing <= {"TigrislikeCacheNotReady", "TigrislikeDiskFilling", "TigrislikeDiskFull"}, (
                "this machine's"
            )
        finally:
            prometheus.terminate()
            prometheus.wait(30)
