"""A controller in a process of its own, provisioned with an operator's keys and tiny signed releases.

For benchmarks and fault tests: what they measure or kill is the shipped `muster serve`, not this process.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx

from harness import publishing
from harness.bundles import write_named_bundle
from muster_controller.registry.operator import init_operator, load_offline
from muster_controller.registry.tuf_repository import create_online_keys
from muster_controller.whereabouts import Running, read_running
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef

MODEL = ModelName("digits")
READY_S = 60.0


@dataclass
class ControllerProcess:
    """`muster serve` over `folder`/data."""

    folder: Path
    arguments: tuple[str, ...] = ()
    fleet: str = "test"
    process: "subprocess.Popen[bytes] | None" = None
    module: str = "muster_controller.cli.main"
    """What is run instead, with the same arguments, by benchmarks that watch it from within."""
    environment: dict[str, str] = field(default_factory=dict)
    ready_s: float = READY_S

    def start(self) -> Running:
        """Start it and wait until it answers."""
        data = self.folder / "data"
        (data / "server.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", self.module, "serve", "--data", str(data)]
        command += ["--fleet", self.fleet, "--port", "0", "--device-port", "0", "--open-lab", *self.arguments]
        with (self.folder / "controller.log").open("ab") as out:
            environment = {**os.environ, "MUSTER_URL": "", **self.environment}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        deadline = time.monotonic() + self.ready_s
        while time.monotonic() < deadline and self.process.poll() is None:
            running = read_running(data)
            if running is not None and running.pid == self.process.pid:
                return running
            time.sleep(0.05)
        raise AssertionError(f"the controller did not start; see {self.folder / 'controller.log'}")

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10.0)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20.0)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def provisioned(folder: Path, *, fleet: str = "test", arguments: tuple[str, ...] = ()) -> Iterator[ControllerProcess]:
    """Make the operator's keys in `folder`, and a controller that is stopped at the end. Start it yourself."""
    init_operator(folder / "operator", [MODEL], create_online_keys(folder / "data"), datetime.now(UTC))
    process = ControllerProcess(folder, arguments, fleet)
    try:
        yield process
    finally:
        process.stop()


def bring_trust(folder: Path, http: httpx.Client) -> None:
    """Give the controller what the offline keys signed."""
    offline = load_offline(folder / "operator")
    body = {"root": offline.root.decode(), "targets": offline.targets.decode(), "keys": offline.keys.decode()}
    http.post("/trust/offline", json=body).raise_for_status()


def publish(folder: Path, http: httpx.Client, version: str, release: int) -> ReleaseRef:
    """Sign and publish a tiny release that no engine runs; return it."""
    bundle = write_named_bundle(folder / f"bundle-{version}", MODEL, version, release)
    return publishing.publish(folder / "operator", bundle, http)
