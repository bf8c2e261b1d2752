"""Pages of rollouts as a real controller renders them: the list, the form before one, one of them, its report."""

import html
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from harness.desk import MODEL, QUICK, Desk, Puppets, is_problem, open_desk, until, wait_for
from muster_controller.cli.main import app

pytestmark = pytest.mark.broker

NAMES = tuple(f"dev-{number:02}" for number in range(12))


@dataclass
class Stage:
    """Two releases: the first is everywhere, the rollout of the second was stopped."""

    desk: Desk
    finished: str
    aborted: str

    def page(self, path: str, http: httpx.Client | None = None, **params: str) -> httpx.Response:
        return (http or self.desk.http).get(self.desk.controller.url + path, params=params or None, timeout=60.0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_desk(tmp_path_factory.mktemp("rollouts")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        broken = {("dev-01", "2.0.0"), ("dev-02", "2.0.0"), ("dev-03", "2.0.0")}
        puppets = Puppets(
            desk.controller.broker_url,
            NAMES,
            is_good=lambda device, version: (device, version) not in broken,
            classes=("sim-cpu", "sim-gpu"),
        )
        with closing(puppets):
            wait_for(desk, len(NAMES))
            first = desk.roll_out("1.0.0").json()["id"]
            until(lambda: desk.state(first) == "finished")
            policy = {**QUICK, "waves": [12], "controls_per_device": 0, "abort_when": [{"failures": 3}]}
            second = desk.roll_out("2.0.0", policy).json()["id"]
            until(lambda: desk.state(second) == "aborted")
            yield Stage(desk, first, second)


@pytest.fixture(scope="module")
def viewer(stage: Stage) -> httpx.Client:
    hired: httpx.Client = stage.desk.hire("vera", "viewer")
    return hired


@pytest.fixture(scope="module")
def oslo(stage: Stage) -> httpx.Client:
    """An operator of the devices with odd numbers."""
    hired: httpx.Client = stage.desk.hire("olaf", "operator", "site=oslo")
    return hired


# -- the list ------------------------------------------------------------------------------------------------------


def test_the_list_tells_who_began_what_and_what_came_of_it(stage: Stage) -> None:
    text = stage.page("/rollouts").text

    for said in (stage.finished, stage.aborted, "finished", "aborted", "local:root"):
        assert said in text


def test_the_list_is_filtered_by_state_and_by_text(stage: Stage) -> None:
    finished = stage.page("/rollouts", state="finished").text
    named = stage.page("/rollouts", q=stage.aborted.upper()).text
    nothing = stage.page("/rollouts", q="100%_").text

    assert f"row-{stage.finished}" in finished
    assert f"row-{stage.aborted}" not in finished
    assert f"row-{stage.aborted}" in named
    assert f"row-{stage.finished}" not in named
    assert "No rollout is like that" in nothing


def test_a_viewer_sees_the_list_and_no_button(stage: Stage, viewer: httpx.Client) -> None:
    for path in ("/rollouts", f"/rollouts/{stage.finished}"):
        text = stage.page(path, viewer).text

        assert stage.finished in text
        for way in ("/rollouts/new", "/rollouts/back", "data-order", 'data-opens="dialog'):
            assert way not in text
    for path in ("/rollouts/new", "/rollouts/back", "/rollouts/new/rehearsal?model=digits&version=1.0.0"):
        assert stage.page(path, viewer).status_code == 403


# -- before a rollout ----------------------------------------------------------------------------------------------


def document(text: str) -> str:
    return html.unescape(text.partition('id="policy-document"')[2].partition(">")[2].partition("</textarea>")[0])


def test_the_form_writes_the_document_that_the_api_takes(stage: Stage) -> None:
    text = stage.page("/rollouts/new", model=MODEL, version="2.0.0", waves="2, 50%", soak_s="1h").text

    found = document(text)
    assert 'id="start"' in text
    assert "2 devices get it first" in text
    plan = stage.desk.http.post(
        "/rollouts", json={"model": MODEL, "version": "2.0.0", "policy": found, "dry_run": True}
    ).json()
    assert plan["waves"] == [2, 6, 4]
    assert plan["policy_written"] == {"waves": [2, "50%"], "soak_s": 3600.0}


def test_a_release_that_was_aborted_before_says_so_before_it_is_started_again(stage: Stage) -> None:
    again = stage.page("/rollouts/new", model=MODEL, version="2.0.0").text
    other = stage.page("/rollouts/new", model=MODEL, version="1.0.0").text

    warning = again.partition('id="aborted-before"')[2].partition("</p>")[0]
    assert f"/rollouts/{stage.aborted}" in warning
    assert "aborted-before" not in other


def test_what_the_page_would_send_is_exactly_what_it_shows(stage: Stage) -> None:
    text = stage.page("/rollouts/new", model=MODEL, version="2.0.0", document="# mine\nwaves: [3]\n").text

    sent = html.unescape(text.partition('name="policy" value="')[2].partition('"')[0])
    assert sent == document(text) == "# mine\nwaves: [3]\n"


def test_a_document_that_is_refused_is_shown_with_its_line_and_cannot_be_started(stage: Stage) -> None:
    text = stage.page("/rollouts/new", model=MODEL, version="2.0.0", document="waves: [3]\nsoak_s: soon\n").text

    assert "line 2" in text
    assert "soak_s: soon" in html.unescape(text)
    assert 'id="start"' not in text


def test_what_no_device_could_satisfy_is_said_before_it_is_started(stage: Stage) -> None:
    text = stage.page("/rollouts/new", model=MODEL, version="2.0.0", selector="site=nowhere").text

    assert "would be refused" in text
    assert 'id="start"' not in text


def test_a_policy_is_taken_again_from_another_rollout(stage: Stage) -> None:
    text = stage.page("/rollouts/new", model=MODEL, version="2.0.0", policy_of=stage.aborted).text

    assert "failures: 3" in document(text)
    assert 'name="abort_when.0.failures" value="3"' in text


def test_a_preview_has_an_address_that_shows_the_same(stage: Stage) -> None:
    url = f"{stage.desk.controller.url}/rollouts/new"
    form = {"model": MODEL, "version": "2.0.0", "waves": "2, 4", "alpha": ""}

    found = stage.desk.http.get(url, params=form, headers={"HX-Request": "true"})
    again = stage.desk.http.get(stage.desk.controller.url + found.headers["hx-replace-url"])

    assert "alpha=" not in found.headers["hx-replace-url"]
    assert document(again.text) == document(found.text) != "{}\n"


def test_a_scoped_operator_plans_for_his_devices_alone(stage: Stage, oslo: httpx.Client) -> None:
    text = stage.page("/rollouts/new", oslo, model=MODEL, version="2.0.0").text
    back = stage.page("/rollouts/back", oslo, model=MODEL, to="2.0.0").text

    assert "<b>6</b> devices of yours" in text
    assert "/rollback" not in back
    assert "Bring yours there by a rollout" in back


def test_the_rehearsal_says_what_would_come_of_it(stage: Stage) -> None:
    found = stage.page("/rollouts/new/rehearsal", model=MODEL, version="2.0.0", document="waves: [3]\n")

    assert found.status_code == 200
    assert "as good as the old one" in found.text
    assert found.text.count("<tr>") == 5


def test_a_rollback_names_how_many_devices_would_change(stage: Stage) -> None:
    text = stage.page("/rollouts/back", model=MODEL, to="2.0.0").text
    plan = stage.desk.http.post(f"/models/{MODEL}/rollback", json={"to": "2.0.0", "dry_run": True}).json()

    assert f"<b>{plan['changing']}</b> of {plan['devices']} devices" in text
    assert f'data-order="/api/v1/models/{MODEL}/rollback"' in text


# -- one rollout ---------------------------------------------------------------------------------------------------


def test_one_rollout_shows_evidence_arms_and_devices(stage: Stage) -> None:
    text = stage.page(f"/rollouts/{stage.aborted}").text

    assert f'id="evidence-{stage.aborted}"' in text
    assert "Control against treated" in text
    assert "abort 20" in text
    assert text.count('id="member-treated-') == len(NAMES)


def test_its_devices_are_filtered(stage: Stage) -> None:
    path = f"/rollouts/{stage.aborted}"

    bad = stage.page(path, outcome="bad").text
    one = stage.page(path, q="DEV-07").text
    second = stage.page(path, wave="2").text

    assert bad.count('id="member-treated-') == 3
    assert one.count('id="member-treated-') == 1
    assert "No device of it is like that" in second


def test_a_page_of_devices_follows_the_other(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster_controller.web.pages.rollouts.MEMBERS_SHOWN", 5)

    seen: list[str] = []
    params = {"arm": "treated"}
    while True:
        text = stage.page(f"/rollouts/{stage.aborted}", None, **params).text
        seen += [each.partition('"')[0] for each in text.split('id="member-treated-0-')[1:]]
        if 'id="members-next"' not in text:
            break
        params["cursor"] = text.partition("cursor=")[2].partition("#")[0]

    assert sorted(seen) == list(NAMES)


def test_a_scoped_operator_sees_his_devices_alone(stage: Stage, oslo: httpx.Client) -> None:
    page = stage.page(f"/rollouts/{stage.aborted}", oslo).text
    report = stage.page(f"/rollouts/{stage.aborted}/report", oslo).text

    named = {each.partition('"')[0] for each in page.split('href="/devices/')[1:]}
    assert {name for name in named if name in NAMES[1::2]} == set(NAMES[1::2])
    assert not named & set(NAMES[0::2])
    assert "dev-03" in report
    assert "dev-02" not in report


@pytest.mark.parametrize("query", ["wave=x", "outcome=odd", "arm=left", "cursor=-1", f"q={'x' * 101}"])
def test_a_filter_that_is_none_is_a_page_that_says_so(stage: Stage, query: str) -> None:
    found = stage.page(f"/rollouts/{stage.aborted}?{query}")

    assert found.status_code == 422
    assert "does not fit" in found.text


# -- afterwards ----------------------------------------------------------------------------------------------------


def test_the_report_says_the_same_as_page_json_and_markdown(stage: Stage) -> None:
    found = stage.desk.get(f"/rollouts/{stage.aborted}/report")
    text = stage.page(f"/rollouts/{stage.aborted}/report").text
    written = stage.desk.http.get(f"/rollouts/{stage.aborted}/report.md")

    assert found["state"] == "aborted"
    assert [each["devices"] for each in found["failures"]] == [3]
    assert {"sim-cpu", "sim-gpu"} == {each["device_class"] for each in found["classes"]}
    assert any(each["what"] == "verdict_abort" for each in found["timeline"])
    assert written.headers["content-type"].startswith("text/markdown")
    for said in ("accuracy 0.31 below 0.95", "sim-gpu", "local:root", "failures: 3"):
        assert said in html.unescape(text)
        assert said in written.text


def test_a_report_of_nothing_is_not_found(stage: Stage) -> None:
    assert is_problem(stage.desk.http.get("/rollouts/none/report"), 404, "not-found")
    assert is_problem(stage.desk.http.get("/rollouts/none/report.md"), 404, "not-found")
    assert stage.page("/rollouts/none/report").status_code == 404


def test_the_command_prints_the_report_and_keeps_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_URL", stage.desk.controller.url)
    monkeypatch.setenv("MUSTER_DATA", str(stage.desk.folder / "data"))
    run = CliRunner().invoke

    printed = run(app, ["rollout", "report", stage.aborted])
    as_json = run(app, ["rollout", "report", stage.aborted, "--json"])
    kept = run(app, ["rollout", "report", stage.aborted, "--out", str(tmp_path / "report.md")])
    both = run(app, ["rollout", "report", stage.aborted, "--json", "--markdown"])
    missing = run(app, ["rollout", "report", "none"])

    assert printed.stdout.startswith("# digits 2.0.0")
    assert msgspec.json.decode(as_json.stdout)["id"] == stage.aborted
    assert kept.exit_code == 0
    assert (tmp_path / "report.md").read_text().startswith("# digits 2.0.0")
    assert (both.exit_code, missing.exit_code) == (2, 4)
