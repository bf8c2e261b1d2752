"""A real controller and a device that is installed, diagnosed and uninstalled by its own commands; no systemd."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.fleet_of_one import free_port, scaling_model
from muster_agent.cli.doctor import diagnose
from muster_agent.install.supervisor import running_pid
from muster_controller.registry.operator import sign_release
from muster_controller.whereabouts import Running, read_running
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file, encode_manifest
from muster_shared.ids import ModelName

WAIT_S = 90.0
YEAR_S = 365 * 86400.0


class Stage:
    """A controller, and a device of which everything is below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = folder / "device"
        self.config = self.device / "etc" / "agent.toml"
        self.data = self.device / "data"
        self.http_port = free_port()
        self.controller: subprocess.Popen[bytes] | None = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self.environment = {**kept, "MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{self.http_port}", "HOME": str(folder)}
        self.environment.pop("XDG_RUNTIME_DIR", None)

    def serve(self) -> Running:
        data = self.folder / "muster-data"
        command = [sys.executable, "-m", "muster_controller.cli.main", "serve", "--data", str(data)]
        command += ["--fleet", "harbour", "--port", "0", "--device-port", "0", "--broker-port", "0"]
        with (self.folder / "controller.log").open("wb") as out:
            self.controller = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, cwd=self.folder)
        wait_for(lambda: read_running(data) is not None, "the controller runs")
        running = read_running(data)
        assert running is not None
        self.muster("init", "operator", "--model", "scale", "--controller-data", str(data))
        self.muster("trust", "push", "operator")
        return running

    def token(self) -> str:
        return str(json.loads(self.muster("enroll-token", "create", "--json"))["token"])

    def muster(self, *arguments: str) -> str:
        return self._said(sys.executable, "-m", "muster_controller.cli.main", *arguments).stdout

    def agent(self, *arguments: str, stdin: str = "", expect: int = 0) -> "subprocess.CompletedProcess[str]":
        return self._said(sys.executable, "-m", "muster_agent.cli", *arguments, stdin=stdin, expect=expect)

    def install(self, *arguments: str, stdin: str = "", expect: int = 0) -> "subprocess.CompletedProcess[str]":
        where: tuple[str, ...] = (
            "--config-dir",
            str(self.config.parent),
            "--data-dir",
            str(self.data),
            "--device",
            "crane-07",
        )
        where += ("--program-dir", str(self.device / "program"), "--supervisor", "own")
        return self.agent("install", *where, "--serve-wait", "20", *arguments, stdin=stdin, expect=expect)

    def doctor(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        said = self.agent("doctor", "--config", str(self.config), "--json", *arguments, expect=expect).stdout
        return {check["check"]: check for check in json.loads(said)["checks"]}

    def status(self) -> Any:
        asked = self._run(sys.executable, "-m", "muster_agent.cli", "status", "--config", str(self.config), "--json")
        return json.loads(asked.stdout) if asked.returncode == 0 else None

    def publish(self) -> None:
        """Bring a model to the fleet that multiplies by three."""
        model, bundle, inputs = ModelName("scale"), self.folder / "bundle", np.array([[1.0, 2.0]], dtype=np.float32)
        bundle.mkdir()
        (bundle / "model.onnx").write_bytes(scaling_model(3.0))
        cases: dict[str, Any] = {"input.x": inputs, "output.y": inputs * 3}
        np.savez(bundle / "golden.npz", **cases)
        manifest = Manifest(
            model=model,
            version="1.0.0",
            release=1,
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
            files=tuple(describe_file(name, (bundle / name).read_bytes()) for name in ("model.onnx", "golden.npz")),
            variants=(Variant(name="cpu", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
            golden=Golden(file="golden.npz"),
        )
        (bundle / "bundle.json").write_bytes(encode_manifest(manifest))
        signed = sign_release(self.folder / "operator", bundle, None, datetime.now(UTC))
        (self.folder / "signed.json").write_bytes(signed.metadata)
        self.muster("model", "publish", "bundle", "--signed", "signed.json")
        self.muster("rollout", "create", "scale", "1.0.0", "--wave", "100%")

    def stop_controller(self) -> None:
        if self.controller is not None:
            self.controller.terminate()
            self.controller.wait(30)
            self.controller = None

    def close(self) -> None:
        if self.config.with_name("install.json").exists():
            self._run(sys.executable, "-m", "muster_agent.cli", "uninstall", "--config", str(self.config))
        self.stop_controller()

    def _said(self, *command: str, stdin: str = "", expect: int = 0) -> "subprocess.CompletedProcess[str]":
        done = self._run(*command, stdin=stdin)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def _run(self, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=180, env=self.environment, cwd=self.folder
        )


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.1)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        stage.close()


def test_one_command_makes_a_device_of_the_fleet_and_another_leaves_nothing_but_its_data(stage: Stage) -> None:
    running = stage.serve()

    first = stage.install("--controller", running.device_url, "--token", "-", "--serve-wait", "0", stdin=stage.token())
    wait_for(lambda: (stage.status() or {}).get("online") is True, "the agent is online")
    stage.publish()
    wait_for(lambda: bool((stage.status() or {}).get("models")), "the first model serves")
    supervisor = running_pid(stage.data / "supervisor")
    fingerprint = json.loads(stage.agent("identity", "--config", str(stage.config), "--json").stdout)["fingerprint"]
    again = stage.install()
    healthy = stage.doctor()
    stage.agent("uninstall", "--config", str(stage.config))

    assert "crane-07 in fleet harbour" in first.stdout
    assert "@reboot" in first.stdout
    assert "it serves scale 1.0.0" in again.stdout
    assert "wrote" not in again.stdout
    assert {check["verdict"] for name, check in healthy.items() if name not in ("disk", "memory")} == {"ok"}, healthy
    assert supervisor is not None
    assert running_pid(stage.data / "supervisor") is None
    assert sorted(path.name for path in stage.device.iterdir()) == ["data", "etc"]
    assert [path.name for path in stage.config.parent.iterdir()] == ["agent.toml"]
    assert stage.status() is None
    kept = json.loads(stage.agent("identity", "--config", str(stage.config), "--json").stdout)
    assert kept["fingerprint"] == fingerprint


def test_an_installation_is_repaired_and_the_identity_stays(stage: Stage) -> None:
    running = stage.serve()
    stage.install("--controller", running.device_url, "--token", "-", "--serve-wait", "0", stdin=stage.token())
    before = stage.agent("identity", "--config", str(stage.config), "--json").stdout
    own_words = stage.config.read_text() + '\ntimezone = "Europe/Berlin"\n'
    stage.config.write_text("fleet = [broken\n")
    (stage.device / "program" / "current").unlink()

    repaired = stage.install("--serve-wait", "0")
    stage.config.write_text(own_words)
    stage.install("--serve-wait", "0")
    changed = stage.install("--serve-wait", "0", "--labels", "site=berlin")

    assert stage.agent("identity", "--config", str(stage.config), "--json").stdout == before
    assert "agent.toml.bak" in repaired.stdout
    assert "agent.toml.bak" in changed.stdout
    assert stage.config.with_name("agent.toml.bak").read_text() == own_words
    assert 'site" = "berlin"' in stage.config.read_text()

    refused = stage.agent("uninstall", "--config", str(stage.config), "--purge", expect=2)
    still_runs = running_pid(stage.data / "supervisor")
    stage.agent("uninstall", "--config", str(stage.config), "--purge", "--yes")

    assert "--yes" in refused.stderr
    assert still_runs is not None
    assert list(stage.device.iterdir()) == []


def test_what_would_be_done_is_shown_and_nothing_is_done(stage: Stage) -> None:
    shown = stage.install("--controller", "https://127.0.0.1:9", "--dry-run").stdout

    assert "would enrol at https://127.0.0.1:9: device crane-07" in shown
    assert not stage.device.exists()


def test_doctor_finds_each_thing_that_is_wrong(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    running = stage.serve()
    who = ("--device", "crane-07", "--data-dir", str(stage.data), "--config", str(stage.config))
    stage.agent("enrol", "--controller", running.device_url, "--token", "-", *who, stdin=stage.token())
    monkeypatch.setenv("MUSTER_AGENT_HTTP_LISTEN", f"127.0.0.1:{stage.http_port}")

    def verdicts(ahead_s: float = 0.0) -> dict[str, tuple[str, str]]:
        found = diagnose(stage.config, offline=False, clock=lambda: time.time() + ahead_s)
        return {finding.check: (finding.verdict, finding.said) for finding in found}

    now = verdicts()
    years_on = verdicts(2 * YEAR_S)
    years_back = verdicts(-2 * YEAR_S)
    stage.stop_controller()
    alone = verdicts()

    assert now["clock"][0] == "ok", now
    assert now["broker"][0] == "ok", now
    assert "MQTT is accepted" in now["broker"][1]
    assert (now["certificate"][0], now["engine"][0]) == ("ok", "ok"), now
    assert (now["agent"][0], now["trust"][0]) == ("fail", "warn")
    assert (years_on["clock"][0], years_on["certificate"][0], years_on["trust"][0]) == ("fail", "fail", "fail")
    assert "ahead" in years_on["clock"][1]
    assert (years_back["clock"][0], years_back["certificate"][0]) == ("fail", "fail")
    assert (alone["broker"][0], alone["clock"][0]) == ("fail", "warn")
    assert "TCP" in alone["broker"][1]
