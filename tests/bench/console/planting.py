"""A fleet with a past, written straight into a database: devices, rollouts, events, notes, audit log, identities."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import msgspec
from immutables import Map
from sqlalchemy import insert

from harness.postgres import Where
from muster_controller.acting import Acting
from muster_controller.audit.audited import Entry
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.state import Outcome, Rollout, RolloutState, assembled, in_order
from muster_controller.db.audit import append_all
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import IdentityRow, table
from muster_controller.ports import Desired, Device, Note, Wanted
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, Hardware, ReleaseRef, Step, StepReached, Twin, TwinModel

MODEL = ModelName("digits")
BATCH = 5000
ONLINE_EACH = 20
"""Every so manyth device is online."""
HISTORY = 300
MEMBERS = 200
"""Devices of each rollout that ended."""
EVENTS, NOTES, AUDITED = 100_000, 20_000, 20_000
DAY_S = 86_400.0
CLASSES = tuple(
    Hardware(device_class=name, arch="aarch64", runtimes=("onnxruntime",), memory_mb=4096, cpu_count=4)
    for name in ("pi5-cpu", "jetson-gpu", "nuc-cpu", "sim-cpu")
)
RELEASES = tuple(
    ReleaseRef(
        model=MODEL, version=f"1.{number}.0", release=number, bundle_sha256=Sha256(f"{number:064x}"), bundle_length=9
    )
    for number in range(1, 6)
)


def name_of(number: int) -> DeviceId:
    return DeviceId(f"device-{number:06d}")


def number_of(device: DeviceId) -> int:
    return int(device.removeprefix("device-"))


def step_of(number: int, at: float, sequence: int) -> Event:
    """Return how far a device came with `running-0`: every such report changes the rollout."""
    step = StepReached(
        release=RELEASES[-1],
        step=(Step.FETCHING, Step.TESTING)[sequence % 2],
        rollout=RolloutId("running-0"),
        bytes_fetched=1_000_000 + sequence,
    )
    return Event(id=EventId(f"s-{number}-{sequence}-{at}"), device=name_of(number), at=at, body=step)


def twin_of(number: int, at: float, sequence: int, boot: str = "b") -> Twin:
    active = RELEASES[-1] if number % 10 else RELEASES[number // 10 % 4]
    model = TwinModel(
        model=MODEL,
        phase="idle",
        active=active,
        engine="onnxruntime cpu",
        requests=sequence * 100,
        latency_ms_p95=12.5,
        last_error="accuracy 0.31 below 0.95" if number % 50 == 0 else None,
    )
    return Twin(
        device=name_of(number),
        sent_at=at,
        boot=boot,
        sequence=sequence,
        agent_version="0.9.0" if number % 3 else "0.8.2",
        counter=1,
        hardware=CLASSES[number % len(CLASSES)],
        labels={"site": f"site-{number % 211}", "line": str(number % 7), "serial": f"s{number:06d}"},
        models=(model,),
    )


def plant(where: Where, devices: int, now: float) -> None:
    """Write the fleet. A twentieth of it is online: those who report while pages are asked."""
    random = Random(1)
    with SqlLedger(where, lambda: now) as ledger:
        for numbers in _batches(devices):
            with ledger.transaction():
                for number in numbers:
                    seen_at = now - random.random() ** 4 * 10 * DAY_S
                    twin = twin_of(number, seen_at, 1)
                    ledger.save_device(Device(name_of(number), number % ONLINE_EACH == 0, "b", seen_at, twin))
                    wanted = Wanted(ModelAssignment(release=RELEASES[-1]), RolloutId("past-0"), seen_at)
                    ledger.save_desired(
                        Desired(name_of(number), 1, now + 30 * DAY_S, {MODEL: wanted}, b"{}", now - DAY_S)
                    )
        for at in range(HISTORY):
            with ledger.transaction():
                some = random.sample(range(devices), min(MEMBERS, devices))
                past = _rollout(f"past-{at}", some, now - (HISTORY - at) * 3600.0, random)
                ledger.save_rollout(_ended(past), None, machine.everything(past))
        with ledger.transaction():
            running = _begun(_rollout("running-0", range(devices), now - 60.0, random), now)
            ledger.save_rollout(running, None, machine.everything(running))
        with ledger.transaction():
            large = _ended(_rollout("large-0", range(devices), now - 30 * DAY_S, random))
            ledger.save_rollout(large, None, machine.everything(large))
        for numbers in _batches(EVENTS):
            with ledger.transaction():
                for number in numbers:
                    ledger.take_event(_event(number, number % devices, now))
        with ledger.transaction():
            for number in range(NOTES):
                ledger.note(Note(now - NOTES + number, "fault_seen", name_of(number % devices), "digits: it fell over"))
    with SideDatabase(find_database(where)) as side, side.transaction() as connection:
        for numbers in _batches(devices):
            connection.execute(insert(table(IdentityRow)), [_identity(number, now) for number in numbers])
        who = Acting("anna", "request", "because")
        append_all(connection, [Entry(who, "rollout.pause", f"past-{each % 300}", "", now) for each in range(AUDITED)])


def _batches(count: int) -> Iterator[Sequence[int]]:
    return (range(start, min(count, start + BATCH)) for start in range(0, count, BATCH))


def _rollout(name: str, numbers: Sequence[int], at: float, random: Random) -> Rollout:
    devices = {name_of(number): CLASSES[number % len(CLASSES)].device_class for number in numbers}
    return machine.create(
        RolloutId(name), RELEASES[-1], RELEASES[-2], Policy(), devices, now=at, actor="anna", shuffle=random.shuffle
    )


def _ended(rollout: Rollout) -> Rollout:
    members = {key: replace(each, wave=0, outcome=Outcome.GOOD) for key, each in rollout.members.items()}
    return replace(rollout, state=RolloutState.FINISHED, ended_at=rollout.created_at + 1800.0, members=Map(members))


def _begun(rollout: Rollout, now: float) -> Rollout:
    """Return it in its first wave, of a fifth of the devices: half of them did well, a few badly, the rest are told.

    Those online, who report meanwhile, are among the rest. It is paused, so that nothing but reports changes it.
    """
    told = [each for each in in_order(rollout.members.values()) if number_of(each.device) % ONLINE_EACH][
        : len(rollout.members) // 5
    ]
    told += [each for each in rollout.members.values() if not number_of(each.device) % ONLINE_EACH]
    members = dict(rollout.members)
    for at, each in enumerate(told):
        outcome = Outcome.GOOD if at < len(told) // 2 else Outcome.PENDING
        if at % 500 == 0 and outcome is Outcome.GOOD:
            outcome = Outcome.BAD
        members[each.device] = replace(
            each,
            wave=0,
            outcome=outcome,
            reason="as it should" if outcome is Outcome.GOOD else "",
            cause="probation" if outcome is Outcome.BAD else "",
            assigned_at=now - 50.0 + at % 40,
            deadline_at=now + DAY_S + at % 200,
            attempt=1,
            previous=RELEASES[-2],
            seconds=3.0 + at % 7,
            bytes_fetched=1_000_000,
        )
    header = replace(
        rollout,
        state=RolloutState.PAUSED,
        wave=0,
        wave_began_at=now - 50.0,
        waves=(len(told), len(members) - len(told)),
    )
    return assembled(header, members.values(), (), {})


def _event(number: int, device: int, now: float) -> Event:
    step = StepReached(release=RELEASES[-1], step=Step.SWITCHED, rollout=RolloutId(f"past-{number % HISTORY}"))
    return Event(id=EventId(f"e-{number}"), device=name_of(device), at=now - 60.0, body=step)


def _identity(number: int, now: float) -> dict[str, object]:
    return {
        "device": name_of(number),
        "state": "accepted",
        "public_key": "-----BEGIN PUBLIC KEY-----\nnone\n-----END PUBLIC KEY-----\n",
        "fingerprint": f"{number:064x}",
        "token": "t1",
        "labels": msgspec.json.encode({"site": f"site-{number % 211}"}),
        "hardware_serial": f"s{number:06d}",
        "agent_version": "0.9.0",
        "device_class": CLASSES[number % len(CLASSES)].device_class,
        "asked_at": now,
        "decided_at": now,
        "decided_by": "anna",
        "reason": "",
    }
