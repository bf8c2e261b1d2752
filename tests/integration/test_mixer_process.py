"""The mixer as a process of its own: with its certificate at a broker that gives everybody the rights of the table, and
killed at random moments while windows arrive."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from paho.mqtt.enums import MQTTProtocolVersion

from harness.guarded_broker import FLEET as GUARDED_FLEET
from harness.guarded_broker import Guarded, Peer, free_port
from harness.mixing import CELL, CONFIG, FLEET, window
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_controller.client_names import mixer_name
from muster_controller.mixer.accounting import NANO
from muster_controller.mixer.folder import MixerFolder
from muster_controller.mixer.ledger import LEDGER_FILE, MixLedger
from muster_shared import topics
from muster_shared.enrolment import Granted
from muster_shared.ids import FleetId
from muster_shared.messages import encode
from muster_shared.metrics import (
    HOUR_S,
    K_MIN,
    RELEASES_A_DAY,
    RHO_DAY,
    UNITS,
    Cell,
    Kind,
    Mixed,
    MixedAck,
    MixerState,
    Window,
    cohort,
)
from muster_shared.sealing import seal
from muster_shared.topics import MetricsTopic, MixedChannel, MixedTopic

pytestmark = pytest.mark.broker

TESTS = Path(__file__).parents[1]
DEADLINE_S = 60.0
MIXER = "one"


@contextmanager
def running(*command: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of this interpreter, which is killed at the end if it is still there."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=out, stderr=out, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10.0)


def until(holds: object, what: str, log: Path) -> None:
    assert callable(holds)
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}\n{log.read_text()[-3000:]}"
        time.sleep(0.02)


class Controller:
    """What a controller hears of a mixer, as it came."""

    def __init__(self, peer: Peer, fleet: FleetId) -> None:
        self.peer, self.fleet = peer, fleet
        assert all(peer.subscribe(f"{topics.ROOT}/{fleet}/mixed/+", f"{topics.ROOT}/{fleet}/mixed/+/state"))

    @property
    def batches(self) -> list[Mixed]:
        topic = topics.build(self.fleet, MixedTopic(MIXER, MixedChannel.SUMS))
        return [msgspec.json.decode(raw, type=Mixed) for name, raw in list(self.peer.received) if name == topic]

    @property
    def states(self) -> list[MixerState]:
        topic = topics.build(self.fleet, MixedTopic(MIXER, MixedChannel.STATE))
        return [msgspec.json.decode(raw, type=MixerState) for name, raw in list(self.peer.received) if name == topic]

    def acknowledge(self, *batches: str) -> None:
        topic = topics.build(self.fleet, MixedTopic(MIXER, MixedChannel.ACK))
        self.peer.publish(topic, encode(MixedAck(batches=batches)))


def send(device: Peer, fleet: FleetId, one: Window, public_key: bytes) -> None:
    device.publish(topics.build(fleet, MetricsTopic(cohort(one.cell))), seal(one, public_key))


def hour_ago(hours: int) -> int:
    """The beginning of an hour that should be closed by now, so that it is as soon as the broker is silent."""
    assert 3 <= hours <= 5, "75 minutes and six hours after its end are between"
    return (int(time.time()) // HOUR_S - hours) * HOUR_S


def admitted(guarded: Guarded, path: Path) -> MixerFolder:
    """A mixer's folder with a certificate, as the controller would have granted it."""
    folder = MixerFolder.create(path, MIXER)
    leaf = guarded.ca.leaf(mixer_name(GUARDED_FLEET, MIXER))
    session = load_pem_private_key(leaf.key.read_bytes(), None)
    assert isinstance(session, ec.EllipticCurvePrivateKey)
    granted = Granted(
        certificate=leaf.certificate.read_text(),
        ca=guarded.ca.root_file.read_text(),
        broker_url=f"mqtts://localhost:{guarded.broker.port}",
        device_url="https://localhost:1",
        trust_root=b"",
        fleet=GUARDED_FLEET,
        labels={},
        renew_at=time.time() + 3600,
        expires_at=time.time() + 7200,
        server_time=time.time(),
    )
    folder.put(session, granted)
    return folder


def test_windows_go_in_and_noised_sums_come_out_with_the_mixers_own_certificate(tmp_path: Path) -> None:
    guarded = Guarded.make(tmp_path, BrokerKind.AUTO, MQTTProtocolVersion.MQTTv5, ["device"])
    guarded.mixers = {MIXER}
    log, rng = tmp_path / "mixer.log", random.Random(1)
    with guarded.start():
        folder = admitted(guarded, tmp_path / "one")
        public = folder.card().public_key
        controller = Controller(guarded.controller(), GUARDED_FLEET)
        device = guarded.join("device")
        arguments = ["muster_controller.cli.main", "mixer", "run", "--data", str(folder.path), "--settle", "0.5"]
        with running(*arguments, log=log) as process:
            until(lambda: controller.states, "the mixer's state", log)
            for _ in range(K_MIN):
                units = {Kind.CLASSES: {3: UNITS}, Kind.DRIFT: {0: UNITS}}
                send(device, GUARDED_FLEET, window(rng, start=hour_ago(4), units=units), public)
            until(lambda: controller.batches, "the sums", log)
            second = subprocess.run(
                [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            process.terminate()
            assert process.wait(20.0) == 0
        (first,) = controller.batches
        with running(*arguments, log=log) as process:
            until(lambda: len(controller.batches) > 1, "the sums again, as nobody acknowledged them", log)
            controller.acknowledge(first.batch)
            until(lambda: told(folder)["outbox"] == 0, "the acknowledgement", log)
            process.terminate()
            assert process.wait(20.0) == 0
        guarded.leave()

    assert first.devices == K_MIN
    assert first.cell == CELL
    assert {kind: len(sums) for kind, sums in first.sums.items()} == {kind: CELL.dim(kind) for kind in Kind}
    assert first.sums[Kind.CLASSES] != (0, 0, 0, K_MIN * UNITS, *[0] * 6), "there is noise on it"
    assert all(one == first for one in controller.batches), "what is said again is the same"
    assert "another mixer uses" in second.stderr
    assert second.returncode == 1
    state = told(folder)
    assert state["windows"] == K_MIN
    assert state["budgets"][0]["rho_spent"] == pytest.approx(RHO_DAY / RELEASES_A_DAY)  # type: ignore[index]
    assert CELL.model not in log.read_text(), "a log names nothing of a window"


def told(folder: MixerFolder) -> dict[str, object]:
    """What `muster mixer state` says, beside the mixer that runs or without."""
    command = [
        sys.executable,
        "-m",
        "muster_controller.cli.main",
        "mixer",
        "state",
        "--data",
        str(folder.path),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    state: dict[str, object] = json.loads(done.stdout)
    return state


HOURS, DEVICES, KILLS = 3, 60, 6
MANY = Cell(model=CELL.model, version="1.0.0", device_class="pi5", classes=DEVICES)


def test_killed_at_any_moment_it_counts_each_window_once_and_publishes_each_sum_once(tmp_path: Path) -> None:
    """Each device of an hour gives its units to a class of its own, so that sums tell whom they hold, and how often."""
    rng = random.Random(4)
    folder = MixerFolder.create(tmp_path / "one", MIXER)
    public = folder.card().public_key
    windows = [
        window(rng, start=hour_ago(3 + hour), cell=MANY, units={Kind.CLASSES: {device: UNITS}})
        for hour in range(HOURS)
        for device in range(DEVICES)
    ]
    windows += rng.sample(windows, DEVICES)  # As devices do that saw no acknowledgement.
    rng.shuffle(windows)
    log, port = tmp_path / "mixer.log", free_port()
    with start_broker(BrokerKind.AUTO, tmp_path / "broker", port) as broker:
        broker.wait_ready(DEADLINE_S)
        controller = Controller(Peer(port, "controller", ca=None, leaf=None), FLEET)
        device = Peer(port, "device", ca=None, leaf=None)
        command = ("harness.mixer_alone", str(folder.path), broker.url)
        with running(*command, log=log):
            until(lambda: controller.states, "the mixer's state", log)  # The broker keeps its session from here on.
        part = len(windows) // KILLS
        for kill in range(KILLS):
            with running(*command, log=log):
                for one in windows[kill * part : (kill + 1) * part]:
                    send(device, FLEET, one, public)
                time.sleep(rng.uniform(0.0, 1.5))  # When it dies is the point, not what to wait for.
        for _ in range(KILLS):  # And while it closes hours, or sends.
            with running(*command, log=log):
                seen = len(controller.batches)
                until(
                    lambda seen=seen: len(controller.batches) > seen or ended(folder) == HOURS,
                    "some sums",
                    log,
                )
        with running(*command, log=log):
            until(lambda: {one.period_start for one in controller.batches} >= ends(folder), "all sums", log)
        for peer in (controller.peer, device):
            peer.leave()

    contents = {one.batch: one for one in controller.batches}
    assert all(one == contents[one.batch] for one in controller.batches), "no batch was published with two contents"
    assert len({(one.cell, one.period_start) for one in contents.values()}) == len(contents), "an hour is there once"
    for batch in contents.values():
        assert set(batch.sums[Kind.CLASSES]) <= {0, UNITS}, "nobody is counted twice"
        assert sum(batch.sums[Kind.CLASSES]) == batch.devices * UNITS
    ledger = MixLedger(folder.path / LEDGER_FILE, read_only=True)
    counts, budgets = Counter(ledger.counters()), ledger.budgets(40, CONFIG.budget)
    ledger.close()
    assert counts["windows"] == sum(one.devices for one in contents.values()) + counts["suppressed"]
    seen = counts["windows"] + counts["repeated"] + counts["too_late"]
    assert seen >= len(windows), "what the dead did not acknowledge came again"
    assert sum(one.rho_spent for one in budgets) == pytest.approx(len(contents) * CONFIG.release / NANO)
    assert all(one.rho_spent <= one.rho_budget for one in budgets)


def ends(folder: MixerFolder) -> set[int]:
    """Of the hours that were published, where they begin; all windows have come, and none is pending."""
    return {start for start, _ in _periods(folder)} if ended(folder) == HOURS else {-1}


def ended(folder: MixerFolder) -> int:
    """How many hours are closed."""
    return sum(closed for _, closed in _periods(folder))


def _periods(folder: MixerFolder) -> list[tuple[int, int]]:
    ledger = MixLedger(folder.path / LEDGER_FILE, read_only=True)
    rows = ledger._all("SELECT start, closed FROM periods WHERE rho_nano > 0 OR NOT closed", ())
    ledger.close()
    return [(start, closed) for start, closed in rows]
