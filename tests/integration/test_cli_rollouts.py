"""The command line against a whole controller: rollouts, their explanation, orders, rollback, what changed."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness.desk import MODEL, Desk, Puppets, open_desk, until, wait_for
from muster_controller.cli.main import app

POLICY = """\
waves: [2]
window_s: 0.2
window_max_s: 0.4
requests_min: 0
deadline_s: 20s
"""

pytestmark = pytest.mark.usefixtures("quiet")

Muster = Callable[..., Result]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        for name in ("anna", "ben"):
            desk.hire(name)
        yield desk


@pytest.fixture(scope="module")
def puppets(desk: Desk) -> Iterator[Puppets]:
    names = tuple(f"dev-{index:02}" for index in range(6))
    with closing(Puppets(desk.controller.broker_url, names)) as puppets:
        wait_for(desk, 6)
        yield puppets


@pytest.fixture
def muster(desk: Desk, puppets: Puppets) -> Muster:
    def run(*words: str, said: str | None = None, by: str = "anna") -> Result:
        assert puppets.names
        environment = {"COLUMNS": "200", "MUSTER_TOKEN": desk.tokens[by], "MUSTER_URL": None}
        return CliRunner(env=environment).invoke(app, ["--url", desk.controller.url, *words], input=said)

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if result.stdout.startswith(("[", "{")) else result.stdout


def go(muster: Muster, policy: Path, version: str) -> str:
    created = done(muster("rollout", "create", MODEL, version, "--policy", str(policy), "--json"))
    done(muster("rollout", "watch", created["id"], "--timeout", "30"))
    return str(created["id"])


def reset(desk: Desk, muster: Muster, version: str) -> None:
    """Bring every device to `version`, whatever it runs."""
    serving = {"model": MODEL, "version": version, "devices": 6}

    def is_there() -> bool:
        return any(serving.items() <= each.items() for each in desk.get("/status")["versions"])

    if not is_there():
        done(muster("rollback", MODEL, "--to", version, "--yes"))
        until(is_there)
    until(lambda: desk.get("/status")["rollouts"] == [])


def test_a_dry_run_shows_the_plan_and_does_nothing(desk: Desk, muster: Muster, policy: Path) -> None:
    words = ("rollout", "create", MODEL, "1.0.0", "--policy", str(policy), "--selector", "site=oslo", "--dry-run")

    shown, plan = done(muster(*words)), done(muster(*words, "--json"))

    assert "digits 1.0.0: 3 devices, 3 of them online; 3 would change." in shown
    assert plan["policy_written"]["selector"] == "site=oslo"
    assert plan["waves"] == [2, 1]
    assert desk.get("/rollouts")["rollouts"] == []


def test_a_policy_is_refused_with_file_and_line_before_anything_is_sent(muster: Muster, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(POLICY + "alfa: 0.01\n")

    result = muster("rollout", "create", MODEL, "1.0.0", "--policy", str(file))

    assert result.exit_code == 1
    assert "broken.yaml:6" in result.stderr
    assert "did you mean alpha?" in result.stderr


def test_a_rollout_is_explained_and_its_evidence_computed_again(
    desk: Desk, muster: Muster, policy: Path, tmp_path: Path
) -> None:
    reset(desk, muster, "1.0.0")
    rollout = go(muster, policy, "2.0.0")

    explained = muster("rollout", "explain", rollout, "--json")
    shown = done(muster("rollout", "explain", rollout))

    for words in ("Counted", "Evidence", "Verdicts", "failures", "latency", "E over time", "Next: It has finished."):
        assert words in shown
    file = tmp_path / "explained.json"
    file.write_text(explained.stdout)
    assert "Every E agrees" in done(muster("rollout", "explain", rollout, "--recompute"))
    assert "Every E agrees" in done(muster("rollout", "explain", "--from", str(file), "--recompute"))
    forged = json.loads(explained.stdout)
    forged["evidence"]["strata"][0]["treated_bad"] += 1
    file.write_text(json.dumps(forged))
    refused = muster("rollout", "explain", "--from", str(file), "--recompute", "--json")
    assert refused.exit_code == 1
    assert [line["name"] for line in json.loads(refused.stdout) if not line["agrees"]] == ["now"]
    devices = done(muster("rollout", "devices", rollout, "--outcome", "good", "--json"))
    assert {each["arm"] for each in devices} == {"treated", "control"}
    assert done(muster("rollout", "devices", rollout, "--outcome", "bad", "--json")) == []


def test_orders_carry_a_name_and_a_reason(desk: Desk, puppets: Puppets, muster: Muster, policy: Path) -> None:
    reset(desk, muster, "1.0.0")
    puppets.delay_s = lambda: 3.0
    try:
        created = done(muster("rollout", "create", MODEL, "2.0.0", "--policy", str(policy), "--json"))
        rollout = created["id"]
        until(lambda: desk.get(f"/rollouts/{rollout}")["counts"]["pending"] == 2)

        assert "is paused" in done(muster("rollout", "pause", rollout, "--reason", "lunch"))
        waiting = done(muster("rollout", "waiting", rollout))
        assert "the rollout is paused: pause by anna: lunch" in waiting
        assert "2 under way" in waiting
        assert done(muster("rollout", "extend", rollout, "--by", "30m", "--json"))["orders"]
        assert muster("rollout", "extend", rollout, "--by", "soon").exit_code == 1
        assert "is running" in done(muster("rollout", "resume", rollout, by="ben"))
        assert muster("rollout", "approve", rollout).exit_code == 5
        assert done(muster("rollout", "list", "--state", "running", "--json"))[0]["id"] == rollout
        assert done(muster("rollout", "abort", rollout, "--json"))["state"] in ("aborting", "aborted")
    finally:
        puppets.delay_s = lambda: 0.0
    assert muster("rollout", "watch", rollout, "--timeout", "20").exit_code == 2
    actors = {note["what"]: (note["actor"], note["detail"]) for note in desk.get("/notes", subject=rollout)["notes"]}
    assert actors["rollout_pause"] == ("anna", "lunch")
    assert actors["rollout_resume"][0] == "ben"


def test_a_rollback_asks_and_says_how_many_need_no_download(desk: Desk, muster: Muster, policy: Path) -> None:
    reset(desk, muster, "1.0.0")
    go(muster, policy, "2.0.0")
    until(lambda: desk.get("/status")["versions"][0]["devices"] == 6)

    declined = muster("rollback", MODEL, "--to", "1.0.0", said="n\n")
    agreed = muster("rollback", MODEL, "--to", "1.0.0", "--reason", "sevens", "--watch", said="y\n")

    assert declined.exit_code == 1
    assert "6 keep 1.0.0 in standby and switch without a download" in declined.stdout
    assert "Bring 6 devices to digits 1.0.0?" in declined.stdout
    assert agreed.exit_code == 0, agreed.output
    assert muster("rollback", MODEL, "--to", "9.0.0", "--yes").exit_code == 4


def test_what_changed_is_shown_for_times_and_for_devices(desk: Desk, muster: Muster, policy: Path) -> None:
    reset(desk, muster, "1.0.0")
    policy.write_text(POLICY + "selector: site=oslo\n")
    rollout = go(muster, policy, "2.0.0")

    shown = done(muster("diff", "--from", "1h ago", "--model", MODEL))
    pair = done(muster("diff", "dev-00", "dev-01"))

    assert "-> 2.0.0: 3 devices (dev-01, dev-03, dev-05)" in shown
    assert f"{rollout} of anna" in shown
    assert "digits: DIFFERENT" in pair
    assert "labels.site" in pair
    assert rollout in pair
    assert done(muster("diff", "dev-00", "dev-01", "--json"))["kind"] == "devices"
    assert "nothing changed" in done(muster("diff", "--from", "now"))
    assert muster("diff", "dev-00").exit_code == 1
    assert muster("diff", "--from", "yesterday").exit_code == 1


def test_names_are_completed_and_silence_is_no_error(desk: Desk, muster: Muster, policy: Path) -> None:
    def complete(url: str, words: str) -> str:
        environment = {"_MUSTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
        result = CliRunner(env={**environment, "MUSTER_URL": url, "MUSTER_TOKEN": desk.tokens["ben"]}).invoke(
            app, [], prog_name="muster"
        )
        assert result.stderr == ""
        return result.stdout

    there = desk.controller.url

    assert complete(there, "muster rollout create ").split() == [MODEL]
    assert complete(there, f"muster rollout create {MODEL} ").split() == ["2.0.0", "1.0.0"]
    assert "dev-00" in complete(there, "muster diff ").split()
    newest = desk.get("/rollouts")["rollouts"][0]["id"]
    assert newest in complete(there, "muster rollout show ")
    assert complete("http://127.0.0.1:9", "muster rollout show ").split() == []


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("device", "list"),
        ("device", "show", "dev-00"),
        ("model", "list"),
        ("model", "show", MODEL),
        ("rollout", "list"),
        ("diff",),
    ],
)
def test_every_listing_has_json(muster: Muster, words: tuple[str, ...]) -> None:
    assert done(muster(*words))
    assert isinstance(done(muster(*words, "--json")), dict | list)
