"""Dashboards, rules and the example in `deploy/`: they ask for what is exported alone, and lead to pages that exist.

PromQL is not parsed: a name in an expression is whatever looks like one of our metrics.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.asking import Scripted, scripted
from harness.endpoint import MODEL
from harness.scraping import scrape
from muster_agent.core.split import Mode
from muster_agent.serving import prometheus
from muster_agent.serving.table import ServingTable
from muster_controller.export.families import Family, text
from muster_controller.export.gathering import Facts, gather
from muster_controller.export.process import process_families

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
RULES = DEPLOY / "prometheus" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
SCHEMA_VERSION = 41
"""Of Grafana 12; newer ones bring older boards up to date by themselves."""
_NAME = re.compile(r"(?<![\w\"$/:.-])(?:muster_model:[\w:]+|(?:muster|nv|process)_[a-z0-9_]+)(?![\w:(])")


def families() -> list[Family]:
    """Return every family that a controller exports, without samples."""
    facts = Facts(
        now=0.0,
        version="0",
        fleet="f",
        is_leading=True,
        is_broker_connected=True,
        counters={},
        devices={},
        online={},
        releases={},
        rollouts={},
        process=process_families(0.0),
    )
    return gather(facts)


def exported() -> set[str]:
    """Return every name of the pages of a controller and an agent, with those that histograms have."""
    table = ServingTable()
    table.switch(MODEL, scripted(Scripted()))
    table.begin_trial(scripted(Scripted(), 2), Mode.SHADOW, 1.0, lambda: 0.5)
    agent = scrape(prometheus.render(table.places(), table.trials), foreign=("nv_",))
    return scrape(text(families())).names | agent.names


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def names(expression: str) -> set[str]:
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_names_are_found_in_expressions() -> None:
    found = names(
        'sum by (model) (rate(muster_requests_total{model="muster_x"}[5m])) / muster_model:a:b > muster_leading'
    )

    assert found == {"muster_requests_total", "muster_model:a:b", "muster_leading"}


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_is_one_that_grafana_takes(path: Path) -> None:
    board = json.loads(path.read_text())

    assert board["schemaVersion"] == SCHEMA_VERSION
    assert board["uid"] == f"muster-{path.stem}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(board):
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["title"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_the_panels_of_a_board_do_not_lie_upon_each_other(path: Path) -> None:
    taken: set[tuple[int, int]] = set()

    for panel in json.loads(path.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_asks_for_what_is_exported_alone(path: Path) -> None:
    board = json.loads(path.read_text())
    variables = [each["definition"] for each in board["templating"]["list"] if each["type"] == "query"]
    asked = [target["expr"] for panel in panels(board) for target in panel["targets"]] + variables

    known = exported() | recorded()

    assert all(names(expression) for expression in asked)
    assert {name for expression in asked for name in names(expression)} <= known


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_uses_no_variable_that_it_does_not_have(path: Path) -> None:
    board = json.loads(path.read_text())
    asked = " ".join(target["expr"] for panel in panels(board) for target in panel["targets"])

    assert set(re.findall(r"\$(\w+)", asked)) <= {each["name"] for each in board["templating"]["list"]}


def test_rules_ask_for_what_is_exported_or_recorded_alone() -> None:
    known = exported() | recorded()

    asked = {name for rule in rules() for name in names(rule["expr"])}

    assert asked <= known
    assert recorded() <= asked


def test_every_alert_has_a_severity_and_a_runbook_that_is_there() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]

    assert len({alert["alert"] for alert in alerts}) == len(alerts) > 15
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert alert["annotations"]["summary"]
        assert (ROOT / alert["annotations"]["runbook_url"]).is_file(), alert["annotations"]["runbook_url"]


@pytest.mark.parametrize(("indicator", "bad"), [("availability", "errors"), ("latency", "slow")])
@pytest.mark.parametrize(("factor", "long", "short"), [("14.4", "1h", "5m"), ("6", "6h", "30m"), ("1", "3d", "6h")])
def test_budgets_burn_over_a_long_and_a_short_window(
    indicator: str, bad: str, factor: str, long: str, short: str
) -> None:
    ratio, budget = f"muster_model:request_{bad}:ratio_rate", f"{factor} * muster_model:{indicator}_budget:ratio"

    wanted = f"{ratio}{long} > {budget} and {ratio}{short} > {budget}"

    assert wanted in [" ".join(rule["expr"].split()) for rule in rules()]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the PATH")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_takes_the_rules_and_they_do_as_they_say(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL is not None

    ran = subprocess.run(
        [PROMTOOL, *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=120, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_documentation_names_what_a_controller_exports_and_nothing_else() -> None:
    told = (ROOT / "docs" / "observability.md").read_text()
    section = told.split("### What a controller exports")[1].split("### Rules")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]

    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    assert documented == {each.name for each in families()}
