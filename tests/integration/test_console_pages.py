"""Pages of the frame: audit, alerts, settings, enrolment and help, as a real controller renders them."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from harness.desk import Desk, local_token, open_desk

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("pages")) as found:
        found.publish("1.0.0", 1)
        found.http.put("/objectives/quick", json={"model": "digits", "indicator": "availability", "target": 0.999})
        yield found


@pytest.fixture
def page(desk: Desk) -> Iterator[httpx.Client]:
    token = local_token(desk.folder / "data")
    with httpx.Client(base_url=desk.controller.url, headers={"Authorization": f"Bearer {token}"}, timeout=30.0) as http:
        yield http


def of(desk: Desk, role: str, selector: str = "") -> str:
    """Return a token of a new operator."""
    name = f"{role}-{abs(hash(selector)) % 1000}"
    desk.http.post("/operators", json={"name": name, "role": role, "selector": selector})
    return str(desk.http.post("/tokens", json={"name": "test", "operator": name}).json()["token"])


def test_the_audit_page_filters_and_says_whether_the_log_holds(page: httpx.Client) -> None:
    everything = page.get("/audit")
    objectives = page.get("/audit", params={"action": "objective."})
    checked = page.get("/audit", params={"check": "true"})

    assert "release.published" in everything.text
    assert "objective.set" in objectives.text
    assert "release.published" not in objectives.text
    assert "The log holds" in checked.text
    assert "The log" not in everything.text


def test_a_day_that_is_none_is_said_and_loses_nothing(page: httpx.Client) -> None:
    found = page.get("/audit", params={"day": "yesterday", "actor": "local:root"})

    assert found.status_code == 200
    assert "That is no day" in found.text
    assert 'value="local:root"' in found.text


def test_who_may_not_read_the_audit_log_is_told_so_and_not_shown_the_way(desk: Desk) -> None:
    token = of(desk, "viewer")

    with httpx.Client(base_url=desk.controller.url, headers={"Authorization": f"Bearer {token}"}) as viewer:
        refused = viewer.get("/audit")
        settings = viewer.get("/settings")

    assert refused.status_code == 403
    assert 'href="/audit"' not in settings.text
    assert "receiver-new" not in settings.text


def test_settings_show_where_alerts_are_told_and_no_secret(desk: Desk, page: httpx.Client) -> None:
    made = desk.http.post(
        "/receivers", json={"name": "pager", "kind": "webhook", "address": "http://127.0.0.1:9/x"}
    ).json()

    found = page.get("/settings")

    assert "pager" in found.text
    assert made["secret"] not in found.text


def test_enrolment_tokens_are_listed_without_their_secret(desk: Desk, page: httpx.Client) -> None:
    made = desk.http.post("/enrol-tokens", json={"labels": {"site": "oslo"}, "uses": 5}).json()

    found = page.get("/settings/enrolment")

    assert made["made"]["id"] in found.text
    assert "site=oslo" in found.text
    assert made["token"] not in found.text


def test_alerts_say_how_objectives_stand_and_what_is_watched(page: httpx.Client) -> None:
    found = page.get("/alerts")

    assert "quick" in found.text
    assert "no traffic" in found.text
    assert found.text.count("What to do") >= 12


def test_every_runbook_is_reached_from_help(page: httpx.Client) -> None:
    found = page.get("/help")

    links = [each.partition('"')[0] for each in found.text.split('href="/runbooks/')[1:]]
    assert len(links) > 15
    assert all(page.get(f"/runbooks/{urlsplit(each).path}").status_code == 200 for each in links)


def test_a_runbook_that_is_none_is_a_page_that_names_those_there_are(page: httpx.Client) -> None:
    found = page.get("/runbooks/nothing")

    assert found.status_code == 404
    assert "alert-drift" in found.text
