"""How fast a fleet is called back: from the deciding report to the last assignment, over a real broker.

    this process: 10,000 devices on one link ── MQTT ──▶ broker ◀── MQTT ──▶ `muster serve` in a process of its own

The controller is the shipped one: its database, its own signing key, the embedded broker, the HTTP server beside it.
The three processes share the cores of this machine. Each abort is told of three times:

    at the controller   from the moment its link has the deciding report to the broker's PUBACK of the last of the
                        assignments: parsing, deciding, signing, saving (each batch with its fsync), publishing with
                        QoS 1 and the broker's answers. Controller time is that by the clock, less what its fleet
                        thread stood ready while the broker or the devices, which elsewhere have machines of their
                        own, had the cores; both are printed, and the CPU seconds of all its threads
    at the devices      from before the report is sent to the last assignment that a device has heard: the way there
                        and back, and our own devices, which take as much of the same cores as the controller does
    alone               the same without a broker and its link, in one process: decided, signed and committed

The peer's figure is no measurement but its design: hawkBit's scheduler looks at rollouts every 2 s, before anything is
done.
"""

import gc
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import httpx
import structlog

from bench.rollout import watched
from bench.rollout.crowd import Devices
from bench.rollout.figures import Line, Options
from bench.rollout.watched import WATCH_FILE, Watched
from harness.controller_process import bring_trust, provisioned, publish
from harness.fleet_stage import Shelf, Stage, release, replace_policy
from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.strata import Stratum
from muster_controller.core.rollout.state import RolloutState
from muster_controller.db.ledger import SqlLedger
from muster_controller.operators.local import read_local
from muster_controller.registry.keys import Role, load_signer
from muster_controller.registry.signing import sign_all
from muster_controller.registry.tuf_repository import KEYS_FOLDER, create_online_keys
from muster_controller.whereabouts import Running
from muster_shared.assignment import Assignment
from muster_shared.ids import DeviceId, FleetId, RolloutId

HAWKBIT_TICK_S = 2.0
TARGET_S = 1.0
TURNS = 3
SHOWN_S = 0.01  # Of a thread's CPU.
FLEET = FleetId("bench")
WAIT_S = 300.0
POLICY = {"waves": ["100%"], "controls_per_device": 0, "deadline_s": 3600.0, "window_s": 1.0, "window_max_s": 2.0}


def _until(what: str, condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.01)


def deciding(devices: int) -> int:
    """Return how many bad reports of `devices` devices, all told at once, abort the rollout."""
    terms = Terms(weights={"failures": 1.0}, has_controls=False)
    low, high = 1, devices
    while low < high:
        middle = (low + high) // 2
        classes = [Stratum(0, f"class-{part}", devices // 3, middle // 3, 0, 0) for part in range(3)]
        if evidence(classes, terms).e >= 1 / terms.alpha:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class Abort:
    """One abort over a broker. Seconds; of what the devices heard, since before the deciding report was sent."""

    wave_s: float
    """From the order to the last device of the wave that was told."""
    first_s: float
    last_s: float
    controller: Watched


def run(options: Options) -> list[Line]:
    """Measure aborts of 10,000 devices (1,000 when quick)."""
    count = 1_000 if options.quick else 10_000
    with tempfile.TemporaryDirectory() as name:
        alone = [_alone(Path(name) / str(turn), count) for turn in range(TURNS)]
    aborts = [_over_broker(count) for _ in range(TURNS)]
    spread = f"of {TURNS}: {_range(alone)}; no broker"
    name = f"abort of {count:,}: decided, signed and committed by the controller alone"
    return [
        *_lines(count, aborts),
        Line(name, f"< {TARGET_S:g} s", f"{min(alone):.2f} s", min(alone) < TARGET_S, spread),
    ]


def _over_broker(count: int) -> Abort:
    with tempfile.TemporaryDirectory() as name, provisioned(Path(name), fleet=FLEET) as process:
        process.module = watched.__name__
        found = Path(name) / "watched.json"
        process.environment[WATCH_FILE] = str(found)
        return _measured(Path(name), process.start(), count, found)


class _Signing(Shelf):
    """The shelf of the tests, with the shipped signing of a real key."""

    def __init__(self, folder: Path) -> None:
        create_online_keys(folder)
        self._signer = load_signer(folder / KEYS_FOLDER / f"{Role.ASSIGNMENT.value}.pem")

    def sign_assignments(self, documents: Sequence[Assignment]) -> list[bytes]:
        return sign_all(documents, self._signer)


def _alone(folder: Path, count: int) -> float:
    """Return how long the fleet and its database take from the deciding report until nobody is left to be called."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder.mkdir()
    stage = Stage(
        SqlLedger(folder / "muster.db", lambda: 1000.0), folder / "muster.db", registry=_Signing(folder / "data")
    )
    names = [f"device-{number:05}" for number in range(count)]
    with stage.ledger.transaction():
        for name in names:
            stage.join(name, active=release(1))
    stage.pass_(0.0)
    policy = replace_policy(waves=("100%",), controls_per_device=0, deadline_s=3600.0)
    rollout = stage.roll_out(2, policy)
    while stage.fleet.is_due():
        stage.fleet.tick()
    gc.collect()
    gc.freeze()  # As `muster serve` does.
    gc.set_threshold(50_000, 20, 20)
    for name in names:
        said = len(stage.said.messages)
        began = time.perf_counter()
        stage.outcome(name, rollout, good=False)
        found = stage.ledger.rollout(rollout.id)
        if found is not None and found.state is not RolloutState.RUNNING:
            break
    while len(stage.said.messages) - said < count:
        stage.fleet.tick()
    took_s = time.perf_counter() - began
    stage.ledger.close()
    return took_s


def _measured(folder: Path, running: Running, count: int, watch_file: Path) -> Abort:
    who = {"Authorization": f"Bearer {read_local(folder / 'data')}"}
    with httpx.Client(base_url=f"{running.url}/api/v1", headers=who, trust_env=False, timeout=60.0) as http:
        bring_trust(folder, http)
        old, new = publish(folder, http, "1.0.0", 1), publish(folder, http, "2.0.0", 2)
        devices = Devices(running.broker_url, FLEET, count)
        try:
            devices.arrive()
            devices.run(old)
            _until("every twin", lambda: http.get("/status").json()["online"] >= count)
            _until("every class", lambda: "unknown" not in http.get("/status").json()["classes"])
            body = {"model": old.model, "version": new.version, "policy": POLICY}
            began = time.perf_counter()
            answer = http.post("/rollouts", json=body).raise_for_status().json()
            _until("the first assignment of every device", lambda: _all_told(devices, 1))
            wave_s = max(devices.told(1).values()) - began
            rollout = RolloutId(answer["id"])

            devices.run(new)
            _until("every new twin", lambda: http.get("/status").json()["counters"]["received"] >= 3 * count)
            order = devices.names
            for name in order[: deciding(count) - 20]:
                devices.report(DeviceId(name), rollout, new, good=False)
            rest = iter(order[deciding(count) - 20 :])
            _until("the first reports", lambda: len(devices.acked) >= deciding(count) - 20)
            heard = devices.heard
            while devices.heard == heard:
                # One by one: the report after which somebody was called back was the deciding one. Its acknowledgement
                # comes after the first of them, on the same connection.
                began = time.perf_counter()
                said = devices.report(DeviceId(next(rest)), rollout, new, good=False)
                _until("its acknowledgement", partial(_is_acked, devices, said))
            _until("the last assignment", lambda: devices.heard >= heard + count and _all_told(devices, 2))
            told = devices.told(2).values()
            _until("the last PUBACK", lambda: _called_back(watch_file) >= count)
            state = http.get(f"/rollouts/{rollout}").json()["state"]
            assert state in ("aborting", "aborted"), state
            found = watched.read(watch_file)
            assert found is not None
            return Abort(wave_s, min(told) - began, max(told) - began, found)
        finally:
            devices.close()


def _all_told(devices: Devices, counter: int) -> bool:
    return devices.heard >= len(devices.names) and len(devices.told(counter)) == len(devices.names)


def _is_acked(devices: Devices, event: str) -> bool:
    return event in devices.acked


def _called_back(watch_file: Path) -> int:
    found = watched.read(watch_file)
    return 0 if found is None else found.assignments


def _lines(count: int, aborts: Sequence[Abort]) -> list[Line]:
    at_controller = [each.controller for each in aborts]
    wall_s, cpu_s = [each.last_s for each in at_controller], [each.cpu_s for each in at_controller]
    last_s = [each.last_s for each in aborts]
    middle = sorted(at_controller, key=lambda each: each.last_s)[len(at_controller) // 2]
    parts = sorted(middle.threads.items(), key=lambda each: -each[1])
    shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts if seconds >= SHOWN_S)
    what = f"abort of {count:,}: from the deciding report to the last assignment at the broker (PUBACK)"
    own_s = [each.last_s - each.waited_s for each in at_controller]
    waited_s = median(each.waited_s for each in at_controller)
    return [
        Line(
            f"{count:,} devices told of a wave, from the order to the last",
            "",
            f"{median(each.wave_s for each in aborts):.2f} s",
            None,
        ),
        Line(
            f"{what}, controller time",
            f"< {TARGET_S:g} s",
            f"{median(own_s):.2f} s",
            median(own_s) < TARGET_S,
            f"of {len(aborts)}: {_range(own_s)}; by the clock {_range(wall_s)}, of which it was ready and broker"
            f" and devices had both cores {waited_s:.2f} s; first {middle.first_s:.2f}, all committed"
            f" {middle.handed_s:.2f} s",
        ),
        Line(
            f"{what}, CPU of the controller",
            "",
            f"{median(cpu_s):.2f} s",
            None,
            f"of {len(aborts)}: {_range(cpu_s)}; {shares}, the rest: signing",
        ),
        Line(
            f"abort of {count:,}: first device told after the deciding report",
            "",
            f"{median(each.first_s for each in aborts):.2f} s",
            None,
        ),
        Line(
            f"abort of {count:,}: last device told after the deciding report",
            "",
            f"{median(last_s):.2f} s",
            None,
            f"of {len(aborts)}: {_range(last_s)};"
            f" {HAWKBIT_TICK_S / median(last_s):.1f} x within one tick of hawkBit's scheduler (2 s)",
        ),
    ]


def _range(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.2f} .. {max(seconds):.2f} s"
