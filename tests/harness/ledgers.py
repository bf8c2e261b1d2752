"""Full values for what a ledger keeps, with every field set to something that is not its default."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from immutables import Map

from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.strata import Stratum, VerdictKind
from muster_controller.core.policy import Approval, Maintenance, Policy, Ramp, Rate, Threshold
from muster_controller.core.rollout.events import Plot
from muster_controller.core.rollout.state import (
    Approved,
    Control,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    Verdict,
    assembled,
)
from muster_controller.ports import Desired, Wanted
from muster_shared.assignment import ModelAssignment, Watch
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, FaultSeen, Hardware, HostTelemetry, ReleaseRef, Step, Twin, TwinModel

A, B, C = DeviceId("dev-a"), DeviceId("dev-b"), DeviceId("dev-c")
MODEL = ModelName("digits")
R1 = RolloutId("r-1")
WATCH = Watch(rollout=R1, wave=0, window_s=1.5, window_max_s=3.25, requests_min=2, deadline_s=60.0)
TERMS = Terms(failure_objective=0.02)


def release(number: int, model: ModelName = MODEL) -> ReleaseRef:
    return ReleaseRef(
        model=model,
        version=f"1.{number}.0",
        release=number,
        bundle_sha256=Sha256(f"{number:064x}"),
        bundle_length=1000 + number,
    )


def twin(device: DeviceId = A, sequence: int = 1) -> Twin:
    return Twin(
        device=device,
        sent_at=1_700_000_000.123456,
        boot="b1",
        sequence=sequence,
        agent_version="0.1.0",
        counter=3,
        hardware=Hardware(device_class="pi5-cpu", arch="aarch64", runtimes=("onnxruntime",), memory_mb=4096),
        labels={"site": "Malmö", "line": "2"},
        timezone="Europe/Stockholm",
        models=(
            TwinModel(model=MODEL, phase="files", active=release(1), desired=release(2), progress=0.5, last_error="x"),
        ),
        host=HostTelemetry(cpu_percent=12.5),
        endpoint="http://127.0.0.1:8000",
    )


def wanted(number: int, *, watch: Watch | None = WATCH, at: float = 5.25) -> Wanted:
    return Wanted(ModelAssignment(release=release(number), watch=watch), R1, at)


def desired(device: DeviceId = A, counter: int = 7, number: int = 2, at: float = 50.5) -> Desired:
    envelope = b'{"payload": "\xc3\xa9\x00"}'
    return Desired(device, counter, at + 99.5, {MODEL: wanted(number)}, envelope, issued_at=at)


POLICY = Policy(
    selector="site in (oslo,bergen),!spare",
    priority=3,
    late_joiners="last_wave",
    waves=(1, "25%"),
    ramp=Ramp(first=3),
    rate=Rate(per_minute=2.5, factor=2.0, per_minute_max=100.0),
    concurrency="10%",
    abort_when=(Threshold(failures="5%", minimum=20, reason="silent"),),
    on_abort="freeze",
    alpha=0.01,
    retries=2,
    approvals=(Approval(before="finish", by=("anna", "bo"), count=2),),
    maintenance=(Maintenance(days="mon-fri", start="22:00", end="04:00"),),
)

MEMBERS = (
    Member(
        A,
        "pi5-cpu",
        0,
        wave=0,
        outcome=Outcome.BAD,
        reason="too slow",
        cause="probation",
        assigned_at=101.0,
        deadline_at=161.0,
        attempt=2,
        retry_at=170.5,
        deferred_until=120.25,
        step=Step.SWITCHED,
        bytes_fetched=5 * 2**31,
        seconds=2.5,
        previous=release(1),
        controls=(B, C),
        latency=0.0625,
        is_paired=True,
        disagreed=True,
        second=Outcome.GOOD,
        returned=True,
    ),
    Member(B, "nuc-cpu", 1, wave=1),
    Member(C, "pi5-cpu", 2, wave=1),
    Member(DeviceId("dev-d"), "nuc-cpu", 3, outcome=Outcome.LEFT, reason="it left the group"),
)
CONTROLS = (
    Control(B, "nuc-cpu", 0, A, 101.0, 161.0, 130.5, Outcome.GOOD, "fine", -0.125),
    Control(C, "pi5-cpu", 0, A),
)
LATENCY: Mapping[tuple[int, str], tuple[tuple[int, int], ...]] = {(0, "pi5-cpu"): ((-3, 2), (12, 1))}


def rollout(
    name: str = "r-1", members: Sequence[Member] = MEMBERS, controls: Sequence[Control] = CONTROLS, **changes: Any
) -> Rollout:
    """A rollout as the core puts it together from its parts; `changes` are of its header."""
    found = evidence((Stratum(0, "pi5-cpu", 2, 1, 3, 0, ((4, 1),), 1, 1),), TERMS)
    header = Rollout(
        id=RolloutId(name),
        model=MODEL,
        release=release(2),
        previous=release(1),
        policy=POLICY,
        waves=(1, 2),
        created_at=100.25,
        created_by="anna",
        at_once=True,
        state=RolloutState.PAUSED,
        pause=Pause.UNDECIDED,
        reason="too few succeeded",
        wave=1,
        wave_began_at=101.0,
        wave_passed_at=102.0,
        confirmed_wave=0,
        paced_at=103.0,
        credit=0.75,
        due_at=104.5,
        aborting_at=105.0,
        verdicts=(Verdict(103.5, 0, VerdictKind.HOLD, "E = 3.1", found),),
        approvals=(Approved("2", "bo", 103.75, "looks fine"),),
        plotted_e=1.5,
    )
    latency = LATENCY if members is MEMBERS else {}
    return replace(assembled(header, members, controls, latency), **changes)


def with_members(rollout: Rollout, *members: Member) -> Rollout:
    """Return `rollout` with these devices in the place of, or beside, its own."""
    return rederived(replace(rollout, members=rollout.members.update({each.device: each for each in members})))


def rederived(rollout: Rollout) -> Rollout:
    """Return `rollout` with its counts as they follow from its devices."""
    latency = {key: stratum.latency for key, stratum in rollout.strata.items() if stratum.latency}
    return assembled(rollout, rollout.members.values(), rollout.controls.values(), latency)


def large_rollout(name: str, devices: int) -> Rollout:
    members = [Member(DeviceId(f"dev-{number:05}"), "pi5-cpu", number) for number in range(devices)]
    return replace(
        rollout(name, members, (), state=RolloutState.RUNNING, pause=None), members=Map({m.device: m for m in members})
    )


def point(number: int) -> Plot:
    return Plot(100.5 + number, number, 1.25 * number, {"failures": 1.5, "latency": 0.5}, 10, 8, number)


def event(name: str, device: DeviceId = A, body: Any = None) -> Event:
    return Event(id=EventId(name), device=device, at=5.5, body=body or FaultSeen(model=MODEL, detail="a rotten file"))
