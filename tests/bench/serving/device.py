"""Our agent as a device has it: the real daemon, installed alone, fed a signed release through a real broker.

    Device.open ── publish, assign, wait until it is committed, stop ──> start() ... stop()   as often as rounds need

The interpreter has `muster-shared` and `muster-agent` with one engine, built from this tree, and nothing else: the
workspace's packages would be in the memory figures.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

from bench.serving.models import Subject
from bench.serving.peers import environment, pip
from bench.serving.processes import Server
from harness.fleet_of_one import Agent, Fleet, Works, free_port
from muster_controller.broker.embedded import BrokerKind, EmbeddedBroker, start_broker
from muster_shared.bundle import Runtime
from muster_shared.ids import FleetId
from muster_shared.messages import Step

ROOT = Path(__file__).parents[3]
PARTS = ("shared", "agent")


def install(engine: Runtime, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the interpreter of an environment with this tree's agent and `engine` alone.

    The tree's own packages are built and installed each time; the others keep the workspace's versions.
    """
    python = environment(cache / "venvs" / f"agent-{engine}", (), say)
    wheels = cache / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("muster_*.whl"):
        old.unlink()
    say(f"installing this tree's agent with {engine}")
    parts = [str(ROOT / part) for part in PARTS]
    pip(Path(sys.executable), ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), *parts])
    constraints = wheels / "constraints.txt"
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    constraints.write_text(
        "".join(f"{name}=={version}\n" for name, version in installed.items() if "muster" not in name)
    )
    shared, agent = (next(wheels.glob(f"muster_{part}-*.whl")) for part in PARTS)
    pip(python, ["install", "-c", str(constraints), str(shared), f"{agent}[{engine}]"])
    pip(python, ["install", "--force-reinstall", "--no-deps", str(shared), str(agent)])
    return python


class Device:
    """An agent whose release is committed, and the broker that it is connected to."""

    def __init__(
        self, subject: Subject, engine: Runtime, python: Path, fleet: Fleet, broker: EmbeddedBroker, folder: Path
    ) -> None:
        self.subject = subject
        self.engine = engine
        self.python = python
        self.socket = folder / "agent.sock"
        self._fleet = fleet
        self._broker = broker
        self._folder = folder

    @classmethod
    def open(cls, subject: Subject, engine: Runtime, python: Path, folder: Path) -> "Device":
        """Bring `subject` to a new device over the air. `folder` is a new one; Unix sockets need it to be short."""
        (folder / "works").mkdir(parents=True)
        works = Works.open(folder / "works", [subject.manifest.model])
        broker = start_broker(BrokerKind.AUTO, folder / "broker", free_port())
        try:
            broker.wait_ready(20.0)
            fleet = Fleet(works, broker, FleetId("bench"), folder, engine)
        except BaseException:
            broker.stop()
            raise
        device = cls(subject, engine, python, fleet, broker, folder)
        try:
            fleet.agent.kill()  # It has the workspace's interpreter.
            device._configure()
            release = works.publish(subject.folder)
            server = device.start()
            fleet.agent = Agent(server.process, folder, server.port)
            fleet.assign(1, release)
            fleet.wait_for_step(release, Step.COMMITTED)
            server.stop()
        except BaseException:
            device.close()
            raise
        return device

    def start(self) -> Server:
        """Start the daemon; the caller stops it."""
        port = free_port()
        command = [str(self.python.parent / "muster-agent"), "run", "--config", str(self._folder / "agent.toml")]
        listen = {"MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{port}"}
        return Server("muster", command, self._folder / "agent.log", port=port, environment=listen)

    def close(self) -> None:
        try:
            self._fleet.close()
        finally:
            self._broker.stop()

    def _configure(self) -> None:
        """What an installation has: nothing is set that the agent finds out by itself."""
        (self._folder / "agent.toml").write_text(
            f'fleet = "bench"\ndevice = "edge-1"\ndevice_class = "lab"\nbroker_url = "{self._broker.url}"\n'
            f'data_dir = "{self._folder / "data"}"\nbootstrap_root = "{self._folder / "root.json"}"\n'
            f'runtimes = ["{self.engine}"]\n[http]\nunix_socket = "{self.socket}"\n'
        )
