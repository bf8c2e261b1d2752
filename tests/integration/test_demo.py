"""The whole story as `muster demo --once` tells it, with a small fleet: exit code and summary."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from muster_simulator.demo.plan import CUT_OFF_S
from muster_simulator.demo.stage import MUSTER

pytestmark = [pytest.mark.broker, pytest.mark.timeout(410)]

ROOT = Path(__file__).parents[2]  # Fetched weights are cached below it, as for `make demo`.
DEVICES = 20
STORY_S = 400.0  # 110 s on two processors of its own.


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_the_story_holds_from_the_first_key_to_the_last_fault(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options = ["--once", "--json", "--dir", str(folder), "--http-port", str(free_port()), "--devices", str(DEVICES)]

    told = subprocess.run(
        [sys.executable, "-c", MUSTER, "demo", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=STORY_S,
        check=False,
    )

    assert told.returncode == 0, told.stderr[-4000:]
    summary = json.loads(told.stdout)
    assert summary["ok"]
    rollouts = {(each["model"], each["version"]): each for each in summary["rollouts"]}
    for model in ("digits", "magika"):
        assert rollouts[model, "2.0.0"]["state"] == "finished"
        assert rollouts[model, "2.0.0"]["exposed"] == DEVICES + 5
        assert rollouts[model, "3.0.0"]["state"] == "aborted"
        assert rollouts[model, "3.0.0"]["exposed"] <= 11
        assert rollouts[model, "3.0.0"]["bytes_fetched_after_abort"] == 0
        assert rollouts[model, "3.0.0"]["verdicts"][-1]["e"] >= 20
    assert rollouts["digits", "2.1.0"]["exposed"] == DEVICES + 4  # One was cut off.
    assert summary["traffic"]["failed"] == 0
    right = {(each["model"], each["version"]): each["accuracy"] for each in summary["traffic"]["real"]}
    for model in ("digits", "magika"):
        assert right[model, "1.0.0"] < right[model, "2.0.0"]
    assert {fault["device"] for fault in summary["faults"]} == {"kiosk-1", "machine-1"}
    refused = [each["who"] for each in summary["refusals"]]
    assert refused == ["stranger", "visitor-1", "visitor-1", "camera-2", "camera-2"]
    assert summary["cut_off_s"] < CUT_OFF_S
    assert not (folder / "pids.json").exists()
    assert "open_lab" not in (folder / "logs" / "controller.log").read_text()
    assert len(list((folder / "load" / "identities").glob("*/current/session.crt"))) == DEVICES
