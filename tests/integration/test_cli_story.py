"""The whole story by the command line alone, each step a `muster` process of its own against a controller process.

Keys, publish, sign, create, watch, pause, resume, abort, roll back, look into one device. Devices are puppets: what
agents make of a release is tested with the agent.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness.controller_process import ControllerProcess
from harness.desk import Puppets, until
from muster_controller.whereabouts import Running

MODEL = "digits"
RUN_S = 60.0
NAMES = tuple(f"dev-{index:02}" for index in range(6))
SPEC = """
model = "digits"
version = "VERSION"
release = RELEASE
licence = "MIT"
card = "card.md"

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]

[[variants]]
name = "ort-fp32"
runtime = "onnxruntime"
precision = "fp32"
files = ["model.onnx"]
hardware = { arch = ["x86_64"], memory_mb_min = 64 }

[golden]
file = "golden.npz"
"""
POLICY = """\
waves: [2]
window_s: 0.2
window_max_s: 0.4
requests_min: 0
deadline_s: 60s
"""


class Muster:
    """The command as a shell runs it, in a folder, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self._environment = {**kept, "XDG_CONFIG_HOME": str(folder / "config"), "COLUMNS": "160", "NO_COLOR": "1"}
        self._environment["MUSTER_DATA"] = str(folder / "data")

    def run(self, *words: str, code: int = 0) -> str:
        """Return what it prints. It has to leave with `code`."""
        command = [sys.executable, "-m", "muster_controller.cli.main", *words]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )
        assert done.returncode == code, f"{words} left with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


@pytest.fixture
def muster(folder: Path) -> Muster:
    return Muster(folder)


@pytest.fixture
def process(folder: Path) -> Iterator[ControllerProcess]:
    process = ControllerProcess(folder)
    try:
        yield process
    finally:
        process.stop()


def write_source(folder: Path, version: str, release: int) -> Path:
    """Write what `muster model build` builds from: a model that adds its input to itself; return its spec."""
    folder.mkdir()
    shape: list[str | int | None] = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        f"double {version}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx"
    )
    inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    golden: dict[str, Any] = {"input.x": inputs, "output.y": inputs * 2}
    np.savez(folder / "golden.npz", **golden)
    (folder / "card.md").write_text(f"# Digits {version}\n")
    spec = folder / "muster-model.toml"
    spec.write_text(SPEC.replace("VERSION", version).replace("RELEASE", str(release)))
    return spec


def publish(muster: Muster, folder: Path, version: str, release: int) -> Any:
    spec = write_source(folder / f"source-{version}", version, release)
    muster.run("model", "build", str(spec), f"bundle-{version}")
    muster.run("model", "sign", f"bundle-{version}", "--out", f"signed-{version}.json")
    return muster.json("model", "publish", f"bundle-{version}", "--signed", f"signed-{version}.json")


def create(muster: Muster, version: str, *more: str) -> Any:
    return muster.json("rollout", "create", MODEL, version, "--policy", "policy.yaml", *more)


def pending(muster: Muster, rollout: str) -> Callable[[], bool]:
    return lambda: muster.json("rollout", "show", rollout)["counts"]["pending"] > 0


def test_the_story_is_told_by_the_command_line_alone(muster: Muster, folder: Path, process: ControllerProcess) -> None:
    running: Running = process.start()
    muster.run("trust", "online-keys", "--out", "online.json")
    muster.run("init", "--model", MODEL, "--online-keys", "online.json")
    assert muster.json("trust", "push") == {"changed": True}
    assert publish(muster, folder, "1.0.0", 1)["versions"] == ["1.0.0"]
    assert publish(muster, folder, "2.0.0", 2)["versions"] == ["1.0.0", "2.0.0"]

    with closing(Puppets(running.broker_url, NAMES)) as puppets:
        until(lambda: muster.json("status")["online"] == len(NAMES))
        plan = create(muster, "1.0.0", "--dry-run")
        assert plan["waves"] == [2, 4]
        first = create(muster, "1.0.0")["id"]
        said = muster.run("rollout", "watch", first, "--timeout", "40", "--json").splitlines()
        assert json.loads(said[-1])["state"] == "finished"

        puppets.delay_s = lambda: 30.0  # The second rollout rests in its first wave, for as long as it is looked at.
        second = create(muster, "2.0.0")["id"]
        until(pending(muster, second))
        assert muster.json("rollout", "pause", second, "--reason", "lunch")["state"] == "paused"
        muster.run("rollout", "watch", second, code=3)
        assert muster.json("rollout", "resume", second)["state"] == "running"
        assert muster.json("rollout", "abort", second, "--reason", "sevens")["state"] in ("aborting", "aborted")
        puppets.delay_s = lambda: 0.0
        muster.run("rollout", "watch", second, "--timeout", "50", code=2)

        back = muster.json("rollback", MODEL, "--to", "1.0.0", "--reason", "to be sure", "--yes")["id"]
        muster.run("rollout", "watch", back, "--timeout", "40")
        device = muster.json("device", "show", NAMES[0])
        assert device["slots"][0]["active"]["version"] == "1.0.0"
        assert muster.json("history", "--device", NAMES[0], "--limit", "1")[0]["device"] == NAMES[0]
        assert "6 of 6 online" in muster.run("top", "--once")

    muster.run("rollout", "show", "no-such-rollout", code=4)
    process.stop()
    muster.run("status", code=6)
