"""`muster key ceremony` as people and scripts use it: what it says, what it refuses, what --dry-run leaves alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from muster_controller.cli.ceremony import app
from muster_controller.registry.keys import PASSPHRASE_VARIABLE, encode_online_keys
from muster_controller.registry.tuf_repository import create_online_keys

Say = Callable[..., Result]
KEYS = [word for role in ("root", "targets") for holder in ("anna", "ben") for word in ("-k", f"{role}-{holder}")]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "online.json").write_bytes(encode_online_keys(create_online_keys(tmp_path / "data")))

    def run(*words: str, **environment: str) -> Result:
        return CliRunner(env={"COLUMNS": "200", PASSPHRASE_VARIABLE: "", **environment}).invoke(app, list(words))

    return run


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout


def begun(say: Say) -> None:
    done(say("begin", "create", "c.json", "--online-keys", "online.json", *KEYS))


def signed(say: Say) -> None:
    begun(say)
    for holder in ("anna", "ben"):
        done(say("join", "c.json", "--holder", holder, "-f", holder))
    for holder in ("anna", "ben"):
        done(say("sign", "c.json", "-f", holder, "--yes"))


def test_a_script_goes_through_a_ceremony_and_reads_each_step(say: Say) -> None:
    first = done(say("begin", "create", "c.json", "--online-keys", "online.json", *KEYS, "--json"))
    joined = [done(say("join", "c.json", "--holder", each, "-f", each, "--json")) for each in ("anna", "ben")]
    steps = [done(say("sign", "c.json", "-f", each, "--yes", "--json")) for each in ("anna", "ben")]
    finished = done(say("finish", "c.json", "-o", "desk", "--json"))

    assert (first["stage"], first["digest"]) == ("joining", None)
    assert joined[0]["done"] == ["root-anna", "targets-anna"]
    assert [each["stage"] for each in (*joined, *steps)] == ["joining", "signing", "signing", "signed"]
    assert {each["digest"] for each in (joined[1], *steps, finished)} == {joined[1]["digest"]}
    assert "desk/metadata/1.root.json" in finished["written"]


def test_a_dry_run_of_any_step_leaves_every_file_as_it_was(say: Say, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    signed(say)
    before = files()

    done(say("begin", "create", "d.json", "--online-keys", "online.json", *KEYS, "--dry-run"))
    done(say("sign", "c.json", "-f", "anna", "--dry-run"))
    done(say("finish", "c.json", "-o", "desk", "--dry-run"))

    assert files() == before


def test_a_dry_run_of_joining_makes_no_key(say: Say, tmp_path: Path) -> None:
    begun(say)

    said = done(say("join", "c.json", "--holder", "anna", "-f", "anna", "--dry-run"))

    assert "Would make root-anna, targets-anna in anna/keys." in said
    assert not (tmp_path / "anna").exists()


def test_nothing_is_signed_where_nobody_can_be_asked(say: Say, tmp_path: Path) -> None:
    begun(say)
    for holder in ("anna", "ben"):
        done(say("join", "c.json", "--holder", holder, "-f", holder))
    before = (tmp_path / "c.json").read_bytes()

    result = say("sign", "c.json", "-f", "anna")

    assert result.exit_code == 1
    assert "read it with --dry-run and then say --yes" in result.stderr
    assert "root: 2 of 2 keys must sign." in result.stdout
    assert (tmp_path / "c.json").read_bytes() == before


def test_a_ceremony_file_is_never_overwritten(say: Say) -> None:
    begun(say)

    result = say("begin", "create", "c.json", "--online-keys", "online.json", *KEYS)

    assert result.exit_code == 1
    assert "is there already" in result.stderr


def test_the_passphrase_of_the_environment_guards_a_new_key(say: Say, tmp_path: Path) -> None:
    begun(say)

    done(say("join", "c.json", "--holder", "anna", "-f", "anna", **{PASSPHRASE_VARIABLE: "anna's own"}))

    assert b"ENCRYPTED" in (tmp_path / "anna" / "keys" / "root-anna.pem").read_bytes()
    assert "anna's own" not in (tmp_path / "c.json").read_text()


def test_what_is_left_after_a_loss_is_told_role_by_role(say: Say) -> None:
    signed(say)
    done(say("finish", "c.json", "-o", "desk"))

    found = {each["role"]: each for each in done(say("assess", "-o", "desk", "--lost", "targets-ben", "--json"))}

    assert (found["root"]["standing"], found["targets"]["standing"]) == ("sound", "replace")
    assert not found["targets"]["can_sign"]
    assert any("--remove targets-ben" in line for line in found["targets"]["advice"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("begin", "rotate", "d.json", "-o", "desk"), "make one with `muster init`"),
        (
            ("begin", "create", "d.json", "--online-keys", "online.json", *KEYS, "-t", "root"),
            "'root' is not of the kind",
        ),
        (("begin", "create", "d.json", "--online-keys", "online.json", *KEYS, "-t", "root=two"), "a role and a number"),
        (("status", "nowhere.json"), "No such file"),
        (("status", "online.json"), "no ceremony file"),
        (("finish", "c.json", "-o", "desk"), "did not join yet"),
        (("finish", "c.json", "-o", "desk", "--dry-run"), "not signed yet"),
        (("join", "c.json", "--holder", "mallory"), "no key of 'mallory' is awaited"),
        (("sign", "c.json", "-f", "anna", "--yes"), "before root-anna"),
        (("online-keys", "--data", "nowhere", "--out", "o.json"), "no controller in nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_and_says_what_to_do(say: Say, words: tuple[str, ...], said: str) -> None:
    begun(say)

    result = say(*words)

    assert result.exit_code == 1
    assert said in result.stderr
