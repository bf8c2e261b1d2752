"""The audit log of a whole controller: what a rollout leaves in it, and what `muster audit` makes of it."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from harness.desk import FLEET, MODEL, QUICK, Desk, Puppets, bring_offline, is_problem, provision, until, wait_for
from muster_controller.audit import checkpoint as checkpoints
from muster_controller.cli.main import app
from muster_controller.config import ServerConfig
from muster_controller.operators.local import FILE as LOCAL_TOKEN
from muster_controller.server import Controller

pytestmark = pytest.mark.usefixtures("quiet")

Muster = Callable[..., Result]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    provision(tmp_path)
    config = ServerConfig(
        data=tmp_path / "data", fleet=FLEET, port=0, broker_port=0, device_port=0, open_lab=True, seed=7
    )
    with Controller(config) as controller:
        headers = {"Authorization": f"Bearer {token(tmp_path)}"}
        base_url = f"{controller.url}/api/v1"
        with httpx.Client(base_url=base_url, trust_env=False, headers=headers) as http:
            desk = Desk(tmp_path, controller, http)
            bring_offline(desk)
            desk.publish("1.0.0", 1)
            yield desk


@pytest.fixture
def puppets(desk: Desk) -> Iterator[Puppets]:
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{index:02}" for index in range(6)))) as puppets:
        wait_for(desk, 6)
        yield puppets


@pytest.fixture
def muster(tmp_path: Path) -> Muster:
    def run(*words: str | Path) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["audit", *map(str, words)])

    return run


def token(folder: Path) -> str:
    return (folder / "data" / LOCAL_TOKEN).read_text()


def asked(desk: Desk, request: str, path: str, body: dict[str, Any]) -> httpx.Response:
    answer = desk.http.post(path, json=body, headers={"X-Request-ID": request})
    assert answer.is_success, answer.text
    return answer


def audited(desk: Desk, **wanted: Any) -> list[dict[str, Any]]:
    """Return lines, oldest first."""
    return list(reversed(desk.get("/audit", limit=1000, **wanted)["lines"]))


def exported(desk: Desk, file: Path) -> Path:
    file.write_bytes(desk.http.get("/audit/export").raise_for_status().content)
    return file


def test_the_life_of_a_rollout_leaves_who_did_what_and_in_which_request(desk: Desk, puppets: Puppets) -> None:
    me = audited(desk, action="trust.changed")[0]["actor"]
    puppets.delay_s = lambda: 1.0  # Slow enough to be paused before it is over.
    order = {"model": MODEL, "version": "1.0.0", "policy": {**QUICK, "waves": [2]}}
    rollout = asked(desk, "req-create", "/rollouts", order).json()["id"]
    asked(desk, "req-pause", f"/rollouts/{rollout}/pause", {"reason": "lunch"})
    asked(desk, "req-resume", f"/rollouts/{rollout}/resume", {"reason": "coffee"})

    until(lambda: desk.state(rollout) == "finished")

    lines = [
        (line["actor"], line["action"], line["request_id"], line["reason"]) for line in audited(desk, subject=rollout)
    ]
    assert [line for line in lines if line[0] == me] == [
        (me, "rollout.created", "req-create", ""),
        (me, "rollout.paused", "req-pause", "lunch"),
        (me, "rollout.pause", "req-pause", "lunch"),
        (me, "rollout.running", "req-resume", "coffee"),
        (me, "rollout.resume", "req-resume", "coffee"),
    ]
    own = [line for line in lines if line[0] != me]
    assert {action for _, action, _, _ in own} == {"wave.started", "rollout.finished", "baseline.set"}
    assert {(actor, request, reason) for actor, _, request, reason in own} == {("controller", "", "")}
    assert desk.get("/audit/verify")["holds"]
    assert {note["actor"] for note in desk.get("/notes", subject=rollout)["notes"]} == {me, "controller"}


def test_what_brings_trust_and_releases_is_audited_too(desk: Desk) -> None:
    actions = [line["action"] for line in audited(desk)]

    assert "trust.changed" in actions
    assert "release.published" in actions
    assert all(line["actor"] and line["request_id"] for line in audited(desk, action="release.published"))


def test_pages_of_the_log_lead_from_one_to_the_next(desk: Desk) -> None:
    whole = desk.get("/audit", limit=1000)["lines"]

    first = desk.get("/audit", limit=1)
    second = desk.get("/audit", limit=1, cursor=first["next"])

    assert [*first["lines"], *second["lines"]] == whole[:2]
    assert desk.get(f"/audit/{whole[-1]['ordinal']}") == whole[-1]
    assert is_problem(desk.http.get("/audit/4711"), 404, "not-found")
    assert is_problem(desk.http.get("/audit/verify", params={"ordinal": 1}), 422, "name-invalid")
    assert is_problem(desk.http.get("/audit/export", params={"after": 4711}), 404, "not-found")


def test_the_head_is_signed_and_the_log_extends_it_later(desk: Desk, muster: Muster, tmp_path: Path) -> None:
    head = desk.http.get("/audit/head").raise_for_status().content
    (tmp_path / "seen.json").write_bytes(head)
    assert checkpoints.parse(head).ordinal == audited(desk)[-1]["ordinal"]
    desk.publish("2.0.0", 2)
    log = exported(desk, tmp_path / "audit.jsonl")

    found = muster("verify", "--file", log, "--since", tmp_path / "seen.json", "--json")

    verdict = json.loads(found.output)
    assert found.exit_code == 0, found.output
    assert (verdict["holds"], verdict["warnings"]) == (True, [])
    assert verdict["signed_by"] == checkpoints.parse(head).key
    assert muster("verify", "--file", log, "--since", log).exit_code == 0  # An export bears witness as well.


def test_a_row_that_was_altered_is_named_by_controller_command_and_file(
    desk: Desk, muster: Muster, tmp_path: Path
) -> None:
    database = tmp_path / "data" / "muster.db"
    seen = exported(desk, tmp_path / "seen.jsonl")
    assert muster("verify", "--database", database, "--since", seen).exit_code == 0
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE audit SET actor = 'nobody' WHERE ordinal = 2")

    by_controller = desk.get("/audit/verify")
    by_database = muster("verify", "--database", database)
    by_file = muster("verify", "--file", exported(desk, tmp_path / "audit.jsonl"), "--json")

    assert [(each["ordinal"], each["flaw"]) for each in by_controller["breaks"]] == [(2, "altered")]
    assert by_database.exit_code == 1
    assert "line 2 altered" in by_database.output
    assert by_file.exit_code == 1
    assert json.loads(by_file.output)["breaks"][0]["ordinal"] == 2


def test_a_log_that_was_written_anew_as_a_whole_is_known_by_an_old_export(
    desk: Desk, muster: Muster, tmp_path: Path
) -> None:
    seen = exported(desk, tmp_path / "seen.jsonl")
    database = tmp_path / "data" / "muster.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM audit")
        connection.execute("UPDATE audit_head SET ordinal = 0, hash = ''")
    for release in (2, 3, 4, 5):
        desk.publish(f"{release}.0.0", release)

    alone = muster("verify", "--database", database)
    witnessed = muster("verify", "--database", database, "--since", seen)

    assert alone.exit_code == 0
    assert witnessed.exit_code == 1
    assert "not the one that the checkpoint saw" in witnessed.output or "cut off" in witnessed.output


def test_the_command_line_lists_exports_and_verifies_over_the_api(
    desk: Desk, muster: Muster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MUSTER_URL", raising=False)

    listed = muster("list", "--action", "release.", "--json")
    written = muster("export", "--output", tmp_path / "audit.jsonl")
    verified = muster("verify")
    head = muster("head", "--json")

    assert [each["action"] for each in json.loads(listed.output)] == ["release.published"]
    assert written.exit_code == 0, written.output
    assert verified.exit_code == 0, verified.output
    assert "The log holds" in verified.output
    (tmp_path / "seen.json").write_text(head.output)
    assert muster("verify", "--since", tmp_path / "seen.json").exit_code == 0
    assert "release.published" in muster("show", json.loads(listed.output)[0]["ordinal"]).output
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "words", [("--file", "nowhere"), ("--database", "nowhere.db"), ("--file", "a", "--database", "b")]
)
def test_what_cannot_be_read_is_no_proof(muster: Muster, words: tuple[str, ...]) -> None:
    assert muster("verify", *words).exit_code == 1
