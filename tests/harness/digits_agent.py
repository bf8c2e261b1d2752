"""A real agent that serves digits, with its Unix socket: for what asks models, not for what updates them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from harness.fleet_of_one import Agent, Fleet, Works, free_port
from muster_controller.broker.embedded import BrokerKind, EmbeddedBroker, start_broker
from muster_shared.ids import FleetId
from muster_shared.messages import ReleaseRef, Step
from muster_simulator.workloads import digits
from muster_simulator.workloads.spec import ReleaseSpec, write_release


class DigitsAgent:
    """One agent process, its fleet, and the releases that it may be given."""

    def __init__(self, fleet: Fleet, broker: EmbeddedBroker, releases: dict[str, ReleaseRef], folder: Path) -> None:
        self.fleet = fleet
        self.broker = broker
        self.releases = releases
        self.folder = folder
        self.socket = folder / "agent.sock"
        self._counter = 0

    @property
    def endpoint(self) -> str:
        return f"unix:{self.socket}"

    @property
    def http_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.fleet.agent.port}"

    def assign(self, version: str) -> None:
        """Give it a release, and wait until it serves."""
        self._counter += 1
        release = self.releases[version]
        self.fleet.assign(self._counter, release)
        self.fleet.wait_for_step(release, Step.SWITCHED)

    def restart(self) -> None:
        """Start the process again, whatever became of the one before."""
        if self.fleet.agent.process.poll() is None:
            self.fleet.agent.stop()
        self.fleet.agent = Agent.start(self.folder, broker_url=self.broker.url)


@cache
def _specs() -> dict[str, ReleaseSpec]:
    return {spec.version: spec for spec in digits.releases()}


def bundle(version: str, folder: Path) -> Path:
    """Write the bundle of a release of digits, and return its folder."""
    write_release(_specs()[version], folder / version)
    return folder / version


@contextmanager
def digits_agent(
    folder: Path, *versions: str, more: str = "", mixers: Mapping[str, bytes] | None = None
) -> Iterator[DigitsAgent]:
    """Run an agent that serves the first of `versions`.

    Args:
        folder: Empty, with a short path: a Unix socket's has 107 characters at most.
        more: Tables for its configuration.
        mixers: Keys of mixers that the offline keys vouch for.
    Raises:
        BrokerUnavailable: there is no broker on this machine.
    """
    works = Works.open(folder / "works", [digits.MODEL], mixers)
    releases = {version: works.publish(bundle(version, folder / "bundles")) for version in versions}
    with start_broker(BrokerKind.AUTO, folder / "broker", free_port()) as broker:
        broker.wait_ready(20)
        fleet = Fleet(works, broker, FleetId("batch"), folder)
        try:
            fleet.agent.stop()
            with (folder / "agent.toml").open("a") as configuration:
                configuration.write(f'[http]\nunix_socket = "{folder / "agent.sock"}"\n{more}')
            agent = DigitsAgent(fleet, broker, releases, folder)
            agent.restart()
            agent.assign(versions[0])
            yield agent
        finally:
            fleet.close()
