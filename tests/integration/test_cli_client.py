"""The command line and connections that break: orders that are sent again are carried out once; what is watched."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from harness.controller_process import bring_trust, provisioned, publish
from harness.desk import MODEL, QUICK, Desk, Puppets, open_desk, until
from harness.fleet_of_one import free_port
from muster_controller.cli import client
from muster_controller.cli.client import Api, ApiProblem, Where
from muster_controller.cli.main import app
from muster_controller.errors import ServerUnavailable
from muster_controller.operators.local import read_local
from muster_controller.whereabouts import read_running

pytestmark = pytest.mark.usefixtures("quiet")


class _Rude(ThreadingHTTPServer):
    """Answers requests as it is told: a status, or None to hang up."""

    def __init__(self, answers: list[int | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Rude

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.keys.append(self.headers["Idempotency-Key"])
        status = self.server.answers.pop(0)
        if status is None:
            self.close_connection = True
            return
        body = b'{"detail": "the same order is being carried out; ask again"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:
        pass


@contextmanager
def rude(*answers: int | None) -> Iterator[_Rude]:
    server = _Rude(list(answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_S", 0.001)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        desk.publish("1.0.0", 1)
        desk.hire("anna", "admin")
        yield desk


def test_an_order_whose_answer_got_lost_is_sent_again_with_the_same_key() -> None:
    with rude(None, 503, 409, 200) as server, Api(Where(server.url)) as api:
        api.post("/rollouts", {})

        assert len(server.keys) == 4
        assert len(set(server.keys)) == 1
        assert server.keys[0]


def test_a_refusal_is_not_asked_again() -> None:
    with rude(409, 200) as server, Api(Where(server.url)) as api, pytest.raises(ApiProblem):
        api.post("/rollouts", {})

    assert len(server.keys) == 1


def test_it_gives_up_after_some_tries() -> None:
    with rude(*[None] * 9) as server, Api(Where(server.url)) as api, pytest.raises(ServerUnavailable):
        api.get("/status")

    assert len(server.keys) == client.TRIES
    assert set(server.keys) == {None}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_names(desk: Desk, shell: str) -> None:
    words = "muster model show "
    environment = {
        "_MUSTER_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": words,
        "COMP_CWORD": "3",
        "MUSTER_URL": desk.controller.url,
        "MUSTER_TOKEN": desk.tokens["anna"],
    }

    result = CliRunner(env=environment).invoke(app, [], prog_name="muster")

    assert MODEL in result.stdout
    assert result.stderr == ""


def test_contexts_are_made_used_and_completed(desk: Desk, tmp_path: Path) -> None:
    def muster(*words: str, **more: str) -> tuple[int, str]:
        environment = {
            "XDG_CONFIG_HOME": str(tmp_path),
            "MUSTER_TOKEN": desk.tokens["anna"],
            "MUSTER_URL": None,
            **more,
        }
        result = CliRunner(env=environment).invoke(app, list(words), prog_name="muster")
        return result.exit_code, result.stdout

    assert muster("context", "set", "gone", "--url", "http://127.0.0.1:9")[0] == 0
    assert muster("context", "set", "here", "--url", desk.controller.url)[0] == 0

    assert muster("status")[0] == 6
    assert muster("--context", "here", "status")[0] == 0
    assert muster("status", MUSTER_CONTEXT="here")[0] == 0
    assert muster("--context", "nowhere", "status")[0] == 1
    assert muster("context", "use", "here")[0] == 0
    assert muster("status")[0] == 0
    assert [each["name"] for each in json.loads(muster("context", "list", "--json")[1])] == ["gone", "here"]
    completing = {"_MUSTER_COMPLETE": "complete_bash", "COMP_WORDS": "muster context use h", "COMP_CWORD": "3"}
    assert muster(**completing)[1].split() == ["here"]


def test_what_is_watched_is_said_again_when_something_changed(desk: Desk, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "muster_controller.cli.main", "--url", desk.controller.url]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    environment = {**kept, "MUSTER_TOKEN": desk.tokens["anna"], "XDG_CONFIG_HOME": str(tmp_path)}
    out = tmp_path / "lines"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*command, "model", "list", "--watch", "--every", "300", "--json"],
            stdout=file,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A suite in the background ignores it.
        )
    try:
        until(lambda: out.read_bytes().count(b"\n") == 1)
        desk.publish("2.0.0", 2)
        until(lambda: out.read_bytes().count(b"\n") >= 2)
        process.send_signal(signal.SIGINT)
        code = process.wait(60.0)
    finally:
        process.kill()
        process.wait(10.0)

    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[0][0]["versions"] == ["1.0.0"]
    assert found[-1][0]["versions"] == ["1.0.0", "2.0.0"]
    assert code == 130


@pytest.mark.broker
def test_a_rollout_is_watched_on_when_the_controller_was_killed_and_came_back(tmp_path: Path) -> None:
    ports = ("--port", str(free_port()), "--broker-port", str(free_port()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    environment = {**kept, "MUSTER_DATA": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path)}
    out, said = tmp_path / "lines", tmp_path / "said"
    with provisioned(tmp_path, arguments=ports) as process, closing(_Http(tmp_path)) as http:
        running = process.start()
        http.connect()
        bring_trust(tmp_path, http.client)
        publish(tmp_path, http.client, "1.0.0", 1)
        with closing(Puppets(running.broker_url, ("dev-a",))):
            until(lambda: len(http.get("/devices")["devices"]) == 1)
        order = {"model": MODEL, "version": "1.0.0", "policy": {**QUICK, "waves": ["100%"], "deadline_s": 3600}}
        rollout = http.client.post("/rollouts", json=order).raise_for_status().json()["id"]
        command = [sys.executable, "-m", "muster_controller.cli.main", "rollout", "watch", rollout, "--json"]
        with out.open("wb") as lines, said.open("wb") as errors:
            watch = subprocess.Popen(command, stdout=lines, stderr=errors, env=environment)
        try:
            until(lambda: out.read_bytes().count(b"\n") >= 1)
            process.kill()
            until(lambda: b"connection lost" in said.read_bytes())
            process.start()
            http.connect()
            http.client.post(f"/rollouts/{rollout}/abort", json={"reason": "enough"}).raise_for_status()
            code = watch.wait(60.0)
        finally:
            watch.kill()
            watch.wait(10.0)

    states = [json.loads(line)["state"] for line in out.read_text().splitlines()]
    assert (states[0], states[-1], code) == ("running", "aborted", 2)
    assert said.read_text().count("connection lost") == 1


class _Http:
    """The API of a controller in its own process, which knows this machine by another token after each start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = httpx.Client()

    def connect(self) -> None:
        self.client.close()
        running = read_running(self.folder / "data")
        assert running is not None
        headers = {"Authorization": f"Bearer {read_local(self.folder / 'data')}"}
        self.client = httpx.Client(base_url=f"{running.url}/api/v1", headers=headers, timeout=30.0, trust_env=False)

    def get(self, path: str) -> dict[str, Any]:
        return dict(self.client.get(path).raise_for_status().json())

    def close(self) -> None:
        self.client.close()
