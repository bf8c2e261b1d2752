"""A device and a real controller: token, enrolment, mTLS to the broker that it starts, renewal, revocation."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from harness.fleet_of_one import free_port
from muster_controller.whereabouts import Running, read_running

WAIT_S = 120.0  # Command lines start slowly on a machine that is busy with other tests.


class Stage:
    """A controller's folder and a device's, each asked by its own command line, as an operator does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "device" / "agent.toml"
        self.http_port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self.environment = {**kept, "MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{self.http_port}", "HOME": str(folder)}

    def serve(self) -> Running:
        data = self.folder / "muster-data"
        command = [
            sys.executable,
            "-m",
            "muster_controller.cli.main",
            "serve",
            "--data",
            str(data),
            "--fleet",
            "harbour",
        ]
        command += ["--port", "0", "--device-port", "0", "--broker-port", "0"]
        with (self.folder / "controller.log").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, cwd=self.folder)
        self.processes.append(process)
        wait_for(lambda: read_running(data) is not None, process, "the controller runs")
        running = read_running(data)
        assert running is not None
        return running

    def muster(self, *arguments: str) -> str:
        return self._said(sys.executable, "-m", "muster_controller.cli.main", *arguments).stdout

    def agent(self, *arguments: str, stdin: str = "", expect: int = 0) -> "subprocess.CompletedProcess[str]":
        command = (sys.executable, "-m", "muster_agent.cli", *arguments, "--config", str(self.config))
        return self._said(*command, stdin=stdin, expect=expect)

    def run_agent(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "muster_agent.cli", "run", "--config", str(self.config)]
        with (self.folder / "agent.log").open("wb") as out:
            self.processes.append(subprocess.Popen(command, stderr=out, env=self.environment))
        return self.processes[-1]

    def status(self) -> Any:
        connection = HTTPConnection("127.0.0.1", self.http_port, timeout=5)
        try:
            connection.request("GET", "/v1/status")
            return json.loads(connection.getresponse().read())
        except OSError:
            return {}
        finally:
            connection.close()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)

    def _said(self, *command: str, stdin: str = "", expect: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env=self.environment,
            cwd=self.folder,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        stage.close()


def test_a_device_enrols_connects_renews_and_is_cut_off_when_it_is_revoked(stage: Stage) -> None:
    running = stage.serve()
    stage.muster("init", str(stage.folder / "operator"), "--controller-data", str(stage.folder / "muster-data"))
    stage.muster("trust", "push", str(stage.folder / "operator"))
    token = json.loads(stage.muster("enroll-token", "create", "--labels", "site=berlin", "--json"))["token"]
    who = ("--device", "crane-07", "--class", "x86-cpu", "--data-dir", str(stage.folder / "device" / "data"))

    stage.agent("enrol", "--controller", running.device_url, "--token", "-", *who, stdin=token)
    agent = stage.run_agent()
    wait_for(lambda: stage.status().get("online") is True, agent, "online")
    online = stage.status()
    renewed = json.loads(stage.agent("renew", "--json").stdout)
    wait_for(lambda: _shown(stage)["online"] is True, agent, "known to be online")
    stage.muster("device", "revoke", "crane-07", "--reason", "stolen")
    shown = _shown(stage)
    wait_for(lambda: stage.status().get("online") is False, agent, "cut off")
    refused = stage.agent("renew", expect=1)

    assert running.broker_url.startswith("mqtts://")
    assert (online["device"]["labels"], online["identity"]["labels"]) == ({}, {"site": "berlin"})
    assert online["identity"]["problem"] == ""
    assert renewed["fingerprint"] != online["identity"]["fingerprint"]
    assert "revoked" in refused.stderr
    assert (shown["online"], shown["hold"]["kind"], shown["hold"]["reason"]) == (False, "revoked", "stolen")
    assert stage.status()["online"] is False


def _shown(stage: Stage) -> dict[str, Any]:
    """Return what the controller says of the device; before it has heard of it, that it is offline."""
    found = json.loads(stage.muster("device", "list", "--json"))
    return dict(json.loads(stage.muster("device", "show", "crane-07", "--json"))) if found else {"online": False}


def test_a_device_waits_for_an_operator_who_compares_its_key(stage: Stage) -> None:
    running = stage.serve()
    token = json.loads(stage.muster("enroll-token", "create", "--approval", "manual", "--json"))["token"]
    who = ("--device", "crane-08", "--class", "x86-cpu", "--data-dir", str(stage.folder / "device" / "data"))
    ask = ("enrol", "--controller", running.device_url, "--token", "-", *who)

    waiting = stage.agent(*ask, stdin=token, expect=7)
    shown = json.loads(stage.muster("device", "identities", "--json"))
    stage.muster("device", "accept", "crane-08")
    stage.agent(*ask, stdin=token)

    assert json.loads(stage.agent("identity", "--json").stdout)["identity_fingerprint"] in waiting.stderr
    assert json.loads(stage.agent("identity", "--json").stdout)["identity_fingerprint"] in json.dumps(shown)
