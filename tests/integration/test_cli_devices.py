"""`muster device` and one's own account by the command line: saved views, filters, one call whole, a new password."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness.desk import Desk, Puppets, open_desk, wait_for
from muster_controller.cli.main import app

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("quiet")]

NAMES = tuple(f"device-{index}" for index in range(1, 5))

Muster = Callable[..., Result]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk, closing(Puppets(desk.controller.broker_url, NAMES)):
        wait_for(desk, len(NAMES))
        yield desk


@pytest.fixture
def muster(desk: Desk, tmp_path: Path) -> Muster:
    def run(*words: str, said: str | None = None, token: str | None = None) -> Result:
        environment = {"COLUMNS": "200", "XDG_CONFIG_HOME": str(tmp_path), "MUSTER_URL": None, "MUSTER_TOKEN": token}
        runner = CliRunner(env={**environment, "MUSTER_DATA": str(desk.folder / "data")})
        return runner.invoke(app, list(words), input=said)

    return run


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in found]


def test_a_view_that_was_saved_filters_the_list_and_is_that_of_the_page(desk: Desk, muster: Muster) -> None:
    saved = done(muster("device", "views", "save", "the second", "--text", "vice-2", "--sort", "-id", "--json"))

    listed = done(muster("device", "views", "list", "--json"))
    found = done(muster("device", "list", "--view", "the second", "--json"))
    everything = muster("device", "list", "--view", "the second", "--text", "device", "--sort", "id", "--json")

    assert (
        [(each["name"], each["query"]) for each in listed]
        == [("the second", "q=vice-2&sort=-id")]
        == [(saved["name"], saved["query"])]
    )
    assert ids(found) == ["device-2"]
    assert ids(done(everything)) == list(NAMES)  # What is said comes before what was saved.
    assert "device-2" in muster("device", "list", "--view", "the second", "--csv").stdout
    assert "row-device-2" in desk.page(f"/devices?{saved['query']}").text
    assert done(muster("device", "views", "delete", "the second", "--json"))["deleted"]
    assert done(muster("device", "views", "list", "--json")) == []


def test_a_view_that_is_not_there_is_said_and_one_without_a_filter_is_not_saved(muster: Muster) -> None:
    missing = muster("device", "list", "--view", "nowhere")
    empty = muster("device", "views", "save", "all")

    assert missing.exit_code == 4
    assert "muster device views list" in missing.stderr
    assert empty.exit_code == 2


def test_names_of_views_are_completed(desk: Desk, muster: Muster) -> None:
    for name in ("north", "north-east", "south"):
        done(muster("device", "views", "save", name, "--state", "failing", "--json"))
    words = "muster device list --view nor"
    environment = {
        "_MUSTER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "4",
        "MUSTER_DATA": str(desk.folder / "data"),
        "MUSTER_URL": None,
        "MUSTER_TOKEN": None,
    }

    result = CliRunner(env=environment).invoke(app, [], prog_name="muster")

    assert result.stdout.split() == ["north", "north-east"]


def test_errors_and_words_filter_devices(muster: Muster) -> None:
    assert done(muster("device", "list", "--error", "--json")) == []
    assert ids(done(muster("device", "list", "--no-error", "-q", "ice-3", "--json"))) == ["device-3"]


def test_one_call_is_shown_whole(desk: Desk, muster: Muster) -> None:
    made = done(muster("device", "call", "device-1", "logs", "--json"))

    one = done(muster("device", "calls", "device-1", made["id"], "--json"))
    words = muster("device", "calls", "device-1", made["id"])
    missing = muster("device", "calls", "device-1", "nowhere")

    assert (one["id"], one["what"], one["state"]) == (made["id"], "logs", "waiting")
    assert made["id"] in words.stdout
    assert missing.exit_code == 4


def test_labels_of_one_device_and_of_a_filter_are_not_given_at_once(muster: Muster) -> None:
    both = muster("device", "label", "site=oslo", "--device", "device-1", "--state", "silent")
    lab = muster("device", "label", "site=oslo", "--device", "device-1")

    assert both.exit_code == 2
    assert lab.exit_code == 5  # An open lab: the order came to the controller, which gives no labels there.
    assert "open lab" in lab.stderr


def test_one_changes_ones_own_password(desk: Desk, muster: Muster) -> None:
    desk.http.post("/operators", json={"name": "ada", "role": "viewer"}).raise_for_status()
    desk.http.post("/operators/ada/password", json={"password": "three plain words"}).raise_for_status()
    token = desk.http.post("/tokens", json={"name": "mine", "operator": "ada"}).json()["token"]

    wrong = muster("password", "--password-stdin", said="not these\nfour very plain words\n", token=token)
    right = muster(
        "password", "--password-stdin", "--json", said="three plain words\nfour plain words now\n", token=token
    )

    assert wrong.exit_code != 0
    assert done(right)["changed"]
    login = {"name": "ada", "password": "four plain words now"}
    assert desk.http.post("/login", json=login).is_success
