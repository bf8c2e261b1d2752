"""Updates of one device, arranged: releases, assignments, states, and what the core answered."""

from dataclasses import replace

from muster_agent.core.events import (
    AssignmentArrived,
    Effect,
    Event,
    FilesReady,
    ManifestReady,
    Report,
    SelfTestDone,
)
from muster_agent.core.state import DeviceState, ModelState, Phase, Slots, Update
from muster_agent.core.trust import Target
from muster_agent.core.update import advance
from muster_shared.assignment import Assignment, ModelAssignment, Watch
from muster_shared.bundle import (
    Golden,
    HardwareMatch,
    Manifest,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    target_path,
)
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId
from muster_shared.messages import (
    AssignmentRefused,
    FaultSeen,
    Hardware,
    OutcomeReported,
    Refusal,
    ReleaseRef,
    Step,
    StepReached,
    WindowReport,
)

FLEET, DEVICE = FleetId("harbour"), DeviceId("crane-7")
MODELS = (ModelName("digits"), ModelName("voice"))
HARDWARE = Hardware(device_class="x86", arch="x86_64", memory_mb=1000, runtimes=("onnxruntime",))
NOW = 1_000_000.0
GOOD = WindowReport(seconds=10, requests=100, latency_ms_p95=1.0)
BAD = WindowReport(seconds=10, requests=50, errors=50, latency_ms_p95=1.0)
SILENT = WindowReport(seconds=10)
WATCH = Watch(rollout=RolloutId("r1"), wave=1, window_s=10, window_max_s=30, requests_min=5)


def release(number: int, model: ModelName = MODELS[0]) -> ReleaseRef:
    name = digest(f"{model} {number}".encode())
    return ReleaseRef(model=model, version=f"1.{number}.0", release=number, bundle_sha256=name, bundle_length=100)


R1, R2, R3 = release(1), release(2), release(3)


def fresh() -> DeviceState:
    return DeviceState(FLEET, DEVICE)


def serving(active: ReleaseRef, standby: ReleaseRef | None = None) -> DeviceState:
    return replace(fresh(), counter=1, models={active.model: ModelState(Slots(active, standby))})


def in_testing(one: ReleaseRef, watch: Watch | None = None) -> DeviceState:
    """R1 serves, `one` waits for its self-test."""
    pending = Update(one, watch, Phase.TESTING, began_at=NOW, deadline_at=None)
    return replace(serving(R1), counter=2, models={one.model: ModelState(Slots(R1), pending)})


def in_probation(one: ReleaseRef) -> DeviceState:
    """`one` has just taken over from R1."""
    state, _ = tell(in_testing(one, WATCH), SelfTestDone(one.bundle_sha256, None, ""))
    return state


def run_update(state: DeviceState, one: ReleaseRef) -> tuple[DeviceState, tuple[Effect, ...]]:
    state, _ = tell(state, assign(state.counter + 1, one))
    state, _ = tell(state, ManifestReady(one.bundle_sha256, manifest(one), HARDWARE))
    state, _ = tell(state, FilesReady(one.bundle_sha256, 1))
    return tell(state, SelfTestDone(one.bundle_sha256, None, ""))


def tell(state: DeviceState, event: Event, now: float = NOW) -> tuple[DeviceState, tuple[Effect, ...]]:
    return advance(state, event, now)


def assign(
    counter: int,
    *releases: ReleaseRef,
    signed: tuple[ReleaseRef, ...] | None = None,
    watch: Watch | None = None,
    device: DeviceId = DEVICE,
    fleet: FleetId = FLEET,
    expires_at: float | None = None,
    at: float = NOW,
    keys: tuple[str, ...] = ("k1",),
) -> AssignmentArrived:
    """Return an assignment of `releases`, of which `signed` (all) are targets, while `keys` are in force."""
    assignment = Assignment(
        fleet=fleet,
        device=device,
        counter=counter,
        issued_at=at,
        expires_at=at + 3600 if expires_at is None else expires_at,
        models=tuple(ModelAssignment(release=one, watch=watch) for one in releases),
    )
    targets = {
        target_path(one.model, one.version): Target(one.bundle_sha256, one.bundle_length)
        for one in (releases if signed is None else signed)
    }
    return AssignmentArrived(assignment, digest(repr(assignment).encode()), targets, keys)


def manifest(one: ReleaseRef, hardware: HardwareMatch | None = None) -> Manifest:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    return Manifest(
        model=one.model,
        version=one.version,
        release=one.release,
        inputs=(tensor,),
        outputs=(tensor,),
        files=(describe_file("m.onnx", b"model"), describe_file("golden.npz", b"cases")),
        variants=(
            Variant(
                name="cpu",
                runtime="onnxruntime",
                precision="fp32",
                files=("m.onnx",),
                hardware=hardware or HardwareMatch(),
            ),
        ),
        golden=Golden(file="golden.npz"),
    )


def slots(state: DeviceState) -> Slots:
    return state.models[R1.model].slots


def bodies(effects: tuple[Effect, ...]) -> list[object]:
    return [effect.body for effect in effects if isinstance(effect, Report)]


def refusals(effects: tuple[Effect, ...]) -> list[Refusal]:
    return [body.refusal for body in bodies(effects) if isinstance(body, AssignmentRefused)]


def steps(effects: tuple[Effect, ...]) -> list[Step]:
    return [body.step for body in bodies(effects) if isinstance(body, StepReached)]


def failures(effects: tuple[Effect, ...]) -> list[Refusal | None]:
    return [body.refusal for body in bodies(effects) if isinstance(body, StepReached) and body.step is Step.FAILED]


def outcomes(effects: tuple[Effect, ...]) -> list[OutcomeReported]:
    return [body for body in bodies(effects) if isinstance(body, OutcomeReported)]


def faults(effects: tuple[Effect, ...]) -> int:
    return sum(isinstance(body, FaultSeen) for body in bodies(effects))
