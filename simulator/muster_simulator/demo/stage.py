"""Where the demo happens: its folder, its ports, and what is written for each process before it starts.

<dir>/ operator/  controller/  mixer/  agents/<device>/  load/  bundles/  truth/  logs/  pids.json  summary.json
"""

import json
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from muster_agent.config import AgentConfig, HardwareConfig, HttpConfig
from muster_agent.identity.folder import IdentityFolder
from muster_agent.metrics.config import MetricsConfig
from muster_controller.broker.embedded import BrokerKind
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId
from muster_simulator.demo import plan
from muster_simulator.demo.plan import AgentPlan
from muster_simulator.demo.processes import Program
from muster_simulator.load.config import LoadConfig

MARKER = ".muster-demo"
HOST = "127.0.0.1"
PORT_MAX = 65_535
MUSTER = "from muster_controller.cli.main import main; main()"  # The `muster` command, wherever its script is.


class FolderNotOurs(MusterError):
    """A folder that no demo made is never emptied."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is not empty and was not made by a demo; choose another with --dir")
        self.folder = folder


class PortTaken(MusterError):
    """A port of this machine that the demo needs."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(f"port {port} cannot be used: {reason}; choose another with --http-port")
        self.port = port


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    http_port: int
    devices: int
    """Simulated ones, beside the five agents."""
    broker: BrokerKind
    cache: Path
    """Where fetched weights are kept between demos."""
    controller: str = MUSTER
    """What Python runs as the controller: tests hand in one whose broker lets somebody listen."""


@dataclass(frozen=True)
class Stage:
    """Paths and ports of one demo."""

    options: Options
    broker_port: int
    agent_ports: Mapping[DeviceId, int]
    began_at: float
    """Unix seconds: since when the clock of the metrics runs fast."""

    @property
    def folder(self) -> Path:
        return self.options.folder

    @property
    def operator(self) -> Path:
        return self.folder / "operator"

    @property
    def controller(self) -> Path:
        return self.folder / "controller"

    @property
    def mixer(self) -> Path:
        return self.folder / "mixer"

    @property
    def bundles(self) -> Path:
        return self.folder / "bundles"

    @property
    def truth(self) -> Path:
        return self.folder / "truth"

    @property
    def bootstrap_root(self) -> Path:
        return self.operator / "metadata" / "1.root.json"

    @property
    def simulated_identities(self) -> Path:
        """The identity folders of the simulated devices."""
        return self.folder / "load" / "identities"

    @property
    def load_status(self) -> Path:
        return self.folder / "load" / "status.json"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.options.http_port}"

    @property
    def broker_url(self) -> str:
        return f"mqtts://{HOST}:{self.broker_port}"

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # -- the programs ------------------------------------------------------------------------------------------------

    def build_program(self, model: str) -> Program:
        options = ["--out", str(self.bundles), "--truth", str(self.truth), "--cache", str(self.options.cache)]
        command = [sys.executable, "-m", "muster_simulator.demo.releases", model, *options]
        return Program(f"build-{model}", command, self.log(f"build-{model}"), is_task=True)

    def controller_program(self) -> Program:
        options = {
            "--data": str(self.controller),
            "--fleet": plan.FLEET,
            "--port": str(self.options.http_port),
            "--broker": self.options.broker.value,
            "--broker-port": str(self.broker_port),
            "--device-port": "0",
            "--seed": str(plan.SEED),
        }
        words = [word for option in options.items() for word in option]
        return Program(
            "controller", [sys.executable, "-c", self.options.controller, "serve", *words], self.log("controller")
        )

    def mixer_program(self) -> Program:
        options = {
            "--data": str(self.mixer),
            "--clock-speed": f"{plan.METRICS_SPEED:g}",
            "--clock-since": f"{self.began_at:.3f}",
            "--settle": "0",
        }
        words = [word for option in options.items() for word in option]
        return Program(plan.MIXER, [sys.executable, "-c", MUSTER, "mixer", "run", *words], self.log(plan.MIXER))

    def data_dir(self, device: DeviceId) -> Path:
        """Return the folder of a real agent's state."""
        return self.folder / "agents" / device / "data"

    def agent_identity(self, device: DeviceId) -> IdentityFolder:
        """Return where a real agent's key and certificate are."""
        return IdentityFolder(self.data_dir(device) / "identity")

    def agent_program(self, agent: AgentPlan, broker_port: int | None = None) -> Program:
        """Write the configuration of an enrolled agent and return what runs it.

        Args:
            broker_port: None: it goes where the controller said when it enrolled.
        """
        folder = self.folder / "agents" / agent.device
        config = AgentConfig(
            fleet=plan.FLEET,
            device=agent.device,
            device_class=agent.device_class,
            broker_url="" if broker_port is None else f"mqtts://{HOST}:{broker_port}",
            data_dir=self.data_dir(agent.device),
            runtimes=(agent.runtime,),
            threads=plan.AGENT_THREADS,
            twin_every_s=plan.TWIN_EVERY_S,
            http=HttpConfig(listen=f"{HOST}:{self.agent_ports[agent.device]}"),
            hardware=HardwareConfig(accelerators=("cpu",), cpu_count=agent.cpu_count, memory_mb=agent.memory_mb),
            metrics=MetricsConfig(clock_speed=plan.METRICS_SPEED, clock_since=self.began_at),
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "agent.toml"
        path.write_text(_toml(msgspec.to_builtins(config, enc_hook=str)), encoding="utf-8")
        return self._module(agent.device, "muster_agent.cli", "run", "--config", str(path), restart_s=plan.RESTART_S)

    def simulated_devices(self) -> Mapping[DeviceId, str]:
        """Return the class of each simulated device."""
        return {device: hardware.device_class for device, hardware in self._load_config().devices().items()}

    def load_program(self) -> Program:
        """Write the configuration of the simulated devices and return what runs them."""
        folder = self.folder / "load"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "load.json"
        path.write_bytes(msgspec.json.encode(self._load_config(), enc_hook=str))
        return self._module("load", "muster_simulator.load", "--config", str(path))

    def _load_config(self) -> LoadConfig:
        folder = self.folder / "load"
        return LoadConfig(
            fleet=plan.FLEET,
            broker_url=self.broker_url,
            bootstrap_root=self.bootstrap_root,
            truth_dir=self.truth,
            work_dir=folder,
            identities=self.simulated_identities,
            count=self.options.devices,
            classes=plan.CLASSES,
            requests_per_s=plan.SIMULATED_REQUESTS_PER_S,
            twin_every_s=plan.TWIN_EVERY_S,
            metrics_clock_speed=plan.METRICS_SPEED,
            metrics_clock_since=self.began_at,
            status_file=self.load_status,
        )

    def _module(self, name: str, module: str, *words: str, restart_s: float | None = None) -> Program:
        return Program(name, [sys.executable, "-m", module, *words], self.log(name), restart_s=restart_s)


def set_stage(options: Options) -> Stage:
    """Empty the demo's folder and choose free ports. What an earlier demo left running must be ended before.

    Raises:
        FolderNotOurs: there is something in the folder that no demo made.
        PortTaken: the page's port is in use.
    """
    folder = options.folder
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise FolderNotOurs(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by `muster demo`, and emptied by the next one.\n", encoding="utf-8")
    if not is_port_free(options.http_port):
        raise PortTaken(options.http_port, "another program has it")
    broker_port, *agent_ports = _free_ports(options.http_port, 1 + len(plan.AGENTS))
    devices = [agent.device for agent in plan.AGENTS]
    return Stage(options, broker_port, dict(zip(devices, agent_ports, strict=True)), round(time.time(), 3))


def is_port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_ports(after: int, count: int) -> list[int]:
    """Return the next free ports: not ones of the system's choice, which may pass to others while an agent restarts."""
    free: list[int] = []
    port = after
    while len(free) < count:
        port += 1
        if port > PORT_MAX:
            raise PortTaken(after, f"there are no {count} free ports behind it")
        if is_port_free(port):
            free.append(port)
    return free


def _toml(table: Mapping[str, Any], within: str = "") -> str:
    """Return `table` as TOML, the tables in it under their dotted names; a JSON string, number or array is TOML too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict | None)]
    for name, inner in table.items():
        if isinstance(inner, dict) and inner:
            lines += ["", f"[{within}{name}]", _toml(inner, f"{within}{name}.").rstrip()]
    return "\n".join(lines) + "\n"
