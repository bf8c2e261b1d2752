"""What hostile devices may say to the controller, a real `muster serve`: nothing of it stops it, or its pages."""

import queue
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attack import forgeries
from harness.controller_process import MODEL, ControllerProcess, bring_trust, provisioned, publish
from harness.desk import client, local_token
from harness.fleet_of_one import free_port, wait_until
from muster_shared.ids import DeviceId, EventId, FleetId
from muster_shared.link import Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import (
    Ack,
    Event,
    FaultSeen,
    Hardware,
    Presence,
    ReleaseRef,
    Twin,
    decode,
    encode,
)
from muster_shared.topics import Channel, DeviceTopic, Topic, WantTopic, build, parse

pytestmark = pytest.mark.broker
FLEET = FleetId("test")
HONEST, STOLEN = DeviceId("honest-1"), DeviceId("stolen-1")


def test_attack_forged_messages_of_every_parser_of_the_controller_stop_nothing(tmp_path: Path) -> None:
    with attacked(tmp_path / "controller") as controller:
        say_everything_forged(controller)
        event = controller.speaks(HONEST)

        wait_until(lambda: controller.has_saved(event), controller.log)
        assert {path: said for path in controller.readable() if (said := controller.complaint(path))} == {}
        assert STOLEN in controller.http.get("/devices").text
        assert "Traceback" not in controller.log()


def test_attack_is_noticed_without_the_defence_of_the_controller(tmp_path: Path) -> None:
    with attacked(tmp_path / "controller", module="attack.undefended_controller") as controller:
        say_everything_forged(controller)
        controller.speaks(HONEST)

        wait_until(lambda: "Exception in thread fleet" in controller.log())


# ----------------------------------------------------------------------------------------------------------------------


def say_everything_forged(controller: "Attacked") -> None:
    """With the certificate of one device, or all of the broker: say what no parser expects."""
    for channel in (Channel.TWIN, Channel.PRESENCE, Channel.EVENT):
        for raw in forgeries.NONSENSE:
            controller.say(DeviceTopic(STOLEN, channel), raw)
    for raw in forgeries.twins(STOLEN):
        controller.say(DeviceTopic(STOLEN, Channel.TWIN), raw)
    for raw in forgeries.events(STOLEN, controller.release):
        controller.say(DeviceTopic(STOLEN, Channel.EVENT), raw)
    for raw in (*forgeries.NONSENSE, *forgeries.wants(STOLEN, controller.release.bundle_length)):
        controller.say(WantTopic(controller.release.bundle_sha256), raw)


class Attacked:
    """A controller, and a line to its broker on which anybody is anybody."""

    def __init__(self, process: ControllerProcess) -> None:
        self._process = process
        running = process.start()
        self.http = client(running.url, local_token(process.folder / "data"))
        bring_trust(process.folder, self.http)
        self.release: ReleaseRef = publish(process.folder, self.http, "1.0.0", 1)
        self._items: queue.Queue[LinkItem] = queue.Queue()
        config = LinkConfig(parse_broker_url(running.broker_url), client_id="anybody")
        self._link = Link(config, self._items.put, rng=random.Random(7))
        self._link.subscribe([build(FLEET, DeviceTopic(HONEST, Channel.ACK))])
        self._link.start()

    def close(self) -> None:
        self._link.stop(5.0)
        self.http.close()

    def say(self, topic: Topic, payload: bytes) -> None:
        self._link.publish(build(FLEET, topic), payload, qos=1)

    def speaks(self, device: DeviceId) -> Event:
        """Say honestly that `device` is there and saw a fault; return that event."""
        self.say(
            DeviceTopic(device, Channel.PRESENCE), encode(Presence(device=device, boot="b", online=True, sent_at=1))
        )
        hardware = Hardware(device_class="lab", arch="x86_64")
        twin = Twin(
            device=device, sent_at=1.0, boot="b", sequence=1, agent_version="1", counter=0, hardware=hardware, models=()
        )
        self.say(DeviceTopic(device, Channel.TWIN), encode(twin))
        event = Event(id=EventId("5" * 24), device=device, at=1.0, body=FaultSeen(model=None, detail="a storm"))
        self.say(DeviceTopic(device, Channel.EVENT), encode(event))
        return event

    def has_saved(self, event: Event) -> bool:
        """Return whether the controller says that it has this event of the honest device in its database."""
        return event.id in self._acknowledged()

    def readable(self) -> list[str]:
        """Return everything that can be read without naming more than a device or a model."""
        named = {"{device}": STOLEN, "{device_id}": STOLEN, "{model}": MODEL, "{name}": STOLEN}
        paths = []
        for path, operations in self.http.get("/openapi.json").json()["paths"].items():
            required = [each for each in operations.get("get", {}).get("parameters", []) if each.get("required")]
            for word, value in named.items():
                path = path.replace(word, value)
            if "get" in operations and "{" not in path and all(each["in"] == "path" for each in required):
                paths.append(path.removeprefix("/api/v1"))
        return paths

    def complaint(self, path: str) -> str:
        """Return how the API fails; empty when it answers. Streams are not followed."""
        with self.http.stream("GET", path) as answer:
            return "" if answer.status_code < 500 else f"{answer.status_code} {answer.read().decode()}"

    def log(self) -> str:
        return (self._process.folder / "controller.log").read_text()

    def _acknowledged(self) -> set[str]:
        found: set[str] = set()
        while True:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return found
            if isinstance(item, Received):
                self._link.ack(item.token)
                if parse(FLEET, item.topic) == DeviceTopic(HONEST, Channel.ACK):
                    found.update(decode(item.payload, Ack).ids)


@contextmanager
def attacked(folder: Path, *, module: str = "") -> Iterator[Attacked]:
    """A controller as it ships, or what `module` makes of it."""
    folder.mkdir()
    with provisioned(folder, fleet=FLEET, arguments=("--broker-port", str(free_port()))) as process:
        if module:
            process.module, process.environment = module, {"PYTHONPATH": str(Path(__file__).parents[1])}
        controller = Attacked(process)
        try:
            yield controller
        finally:
            controller.close()
