"""The measured choice, with sessions whose speed is written down and a clock that nobody waits for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest

from muster_agent.engines.bench import Bench, Feed, Rate, batches
from muster_agent.engines.golden import load_cases
from muster_agent.engines.port import Achieved, Array, EngineError, EngineMissing, ModelUnloadable, Session
from muster_agent.engines.tuning import NothingPasses, Shape, Tuned, shapes, tune
from muster_shared.bundle import Golden, Manifest, Serving, Slo, StateTensor, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName
from muster_shared.messages import TRIAL_TEXT_MAX, TRIALS_MAX, Tuning

X = np.arange(12, dtype=np.float32).reshape(4, 3)


@dataclass
class Net:
    """How one variant behaves: y = x * factor, a call takes `ms` (of one row) plus `row_ms` for each further row."""

    ms: float
    row_ms: float | None = None
    """None: as much as the first."""
    two_threads_gain: float = 1.6
    factor: float = 2.0
    batched_factor: float | None = None
    contention: float = 1.0
    """What a call takes longer when all instances are busy."""
    error: EngineError | None = None
    fallback: str = ""

    def call_ms(self, rows: int, threads: int) -> float:
        further = self.ms if self.row_ms is None else self.row_ms
        return (self.ms + further * (rows - 1)) / (self.two_threads_gain if threads > 1 else 1.0)


class FakeSession:
    def __init__(self, net: Net, threads: int, instances: int) -> None:
        self.net = net
        self.threads = threads
        self.concurrency = instances
        self.closed = False
        self.achieved = Achieved(
            engine="onnxruntime", version="9", device="CPU", precision="fp32", threads=threads, fallback=net.fallback
        )

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        factor = self.net.factor
        if len(arrays[0]) > 1 and self.net.batched_factor is not None:
            factor = self.net.batched_factor
        return [(arrays[0] * np.float32(factor)).astype(np.float32)]  # type: ignore[operator]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.run_arrays((inputs["x"],))[0]}

    def close(self) -> None:
        self.closed = True


@dataclass
class Device(Bench):
    """The engine, the bench and the clock of one test."""

    nets: dict[str, Net]
    load_s: float = 0.1
    now: float = 0.0
    memory_mb: float = 100.0
    row_mb: float = 0.0
    loaded: list[tuple[str, int, int]] = field(default_factory=list)
    sessions: list[FakeSession] = field(default_factory=list)

    def load(self, variant: Variant, *, threads: int, instances: int) -> Session:
        self.now += self.load_s
        self.loaded.append((variant.name, threads, instances))
        net = self.nets[variant.name]
        if net.error is not None:
            raise net.error
        session = FakeSession(net, threads, instances)
        self.sessions.append(session)
        assert sum(not session.closed for session in self.sessions) <= 2
        return session

    def rate(self, session: Session, feeds: Sequence[Feed], *, streams: int, seconds: float) -> Rate:
        assert isinstance(session, FakeSession)
        self.now += seconds
        ms = session.net.call_ms(1, session.threads) * (session.net.contention if streams > 1 else 1.0)
        return Rate(streams * 1e3 / ms, ms)

    def call_ms(self, session: Session, feed: Feed) -> float:
        assert isinstance(session, FakeSession)
        rows = len(feed[0])
        ms = session.net.call_ms(rows, session.threads)
        self.now += 10 * ms / 1e3
        self.memory_mb += rows * self.row_mb
        return ms

    def tune(
        self, golden: Path, *, cpus: int = 2, threads_max: int = 2, budget_s: float = 6.0, **said: object
    ) -> Tuned:
        manifest = manifest_of(tuple(self.nets), **said)
        return tune(
            manifest.variants,
            self.load,
            manifest,
            golden,
            cpus=cpus,
            threads_max=threads_max,
            clock=lambda: self.now,
            resident_mb=lambda: self.memory_mb,
            bench=self,
            budget_s=budget_s,
        )


def manifest_of(names: tuple[str, ...], **said: object) -> Manifest:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
    manifest = Manifest(
        model=ModelName("double"),
        version="1.0.0",
        release=1,
        inputs=(tensor,),
        outputs=(msgspec.structs.replace(tensor, name="y"),),
        files=(describe_file("m", b"m"), describe_file("g", b"g")),
        variants=tuple(Variant(name=name, runtime="onnxruntime", precision="fp32", files=("m",)) for name in names),
        golden=Golden(file="g"),
    )
    return msgspec.structs.replace(manifest, **said)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    file = tmp_path / "golden.npz"
    np.savez(file, **{"input.x": X, "output.y": X * 2})  # type: ignore[arg-type]
    return file


def test_the_fastest_variant_wins_whatever_the_publishers_order(golden: Path) -> None:
    device = Device({"slow": Net(20), "fast": Net(10), "middle": Net(15)})

    tuned = device.tune(golden)

    assert tuned.variant.name == "fast"
    assert tuned.tuning.rows_per_s == 200.0
    assert {trial.variant for trial in tuned.tuning.alternatives} >= {"slow", "middle"}


def test_a_tie_goes_to_the_publishers_first(golden: Path) -> None:
    assert Device({"first": Net(10), "second": Net(9.8)}).tune(golden).variant.name == "first"


def test_two_instances_of_one_thread_are_chosen_when_they_give_more_rows(golden: Path) -> None:
    tuned = Device({"net": Net(10, two_threads_gain=1.6)}).tune(golden)

    assert (tuned.plan.threads, tuned.plan.instances_max) == (1, 2)


def test_one_instance_of_two_threads_is_chosen_when_it_gives_more_rows(golden: Path) -> None:
    tuned = Device({"net": Net(10, contention=1.9)}).tune(golden)

    assert (tuned.plan.threads, tuned.plan.instances_max) == (2, 1)
    assert tuned.tuning.alternatives[0].instances == 2


def test_the_slower_way_is_chosen_when_only_it_keeps_the_slo(golden: Path) -> None:
    device = Device({"net": Net(10, two_threads_gain=1.6)})

    tuned = device.tune(golden, slo=Slo(latency_ms_p95=8.0))

    assert tuned.plan.threads == 2
    assert "SLO" in tuned.tuning.alternatives[0].refused


def test_a_variant_that_fails_the_golden_cases_never_wins(golden: Path) -> None:
    tuned = Device({"wrong": Net(1, factor=3), "right": Net(10)}).tune(golden)

    assert tuned.variant.name == "right"
    assert tuned.tuning.alternatives[0].variant == "wrong"
    assert "cases fail" in tuned.tuning.alternatives[0].refused


def test_a_variant_without_its_engine_is_passed_over(golden: Path) -> None:
    device = Device({"missing": Net(1, error=EngineMissing("openvino", "not installed")), "there": Net(10)})

    tuned = device.tune(golden)

    assert tuned.variant.name == "there"
    assert "not installed" in tuned.tuning.alternatives[0].refused


def test_when_nothing_passes_the_first_reason_is_told_and_nothing_stays_loaded(golden: Path) -> None:
    device = Device({"broken": Net(1, error=ModelUnloadable("cut short")), "wrong": Net(1, factor=3)})

    with pytest.raises(NothingPasses, match="cut short") as refused:
        device.tune(golden)

    assert isinstance(refused.value.first, ModelUnloadable)
    assert all(session.closed for session in device.sessions)


def test_only_the_winner_stays_loaded(golden: Path) -> None:
    device = Device({"a": Net(10), "b": Net(8), "c": Net(12)})

    tuned = device.tune(golden)

    assert [session for session in device.sessions if not session.closed] == [tuned.session]


def test_a_tiny_model_is_not_tried_with_more_threads(golden: Path) -> None:
    device = Device({"tiny": Net(0.01, row_ms=0.001)})

    tuned = device.tune(golden)

    assert device.loaded == [("tiny", 1, 2)]
    assert tuned.plan.inline
    assert tuned.plan.batch_max == 64


def test_a_hopeless_variant_is_not_tried_with_more_threads(golden: Path) -> None:
    device = Device({"good": Net(10), "hopeless": Net(40)})

    device.tune(golden)

    assert ("hopeless", 2, 1) not in device.loaded


def test_it_ends_when_the_time_is_up_and_says_what_it_did_not_try(golden: Path) -> None:
    device = Device({"a": Net(10), "b": Net(11), "c": Net(9)}, load_s=2.0)

    tuned = device.tune(golden, budget_s=5.0)

    assert device.now < 5.0 + 2.0 + 0.5  # One trial may have begun just before its time was up.
    refused = [trial for trial in tuned.tuning.alternatives if "time was up" in trial.refused]
    assert next(trial.variant for trial in refused) == "c"


def test_even_without_time_the_first_that_passes_serves(golden: Path) -> None:
    device = Device({"wrong": Net(1, factor=3), "right": Net(10), "untried": Net(1)}, load_s=5.0)

    assert device.tune(golden, budget_s=1.0).variant.name == "right"


def test_a_model_that_only_computes_is_measured_no_further_than_that_shows(golden: Path) -> None:
    tuned = Device({"net": Net(10)}).tune(golden)

    assert [rows for rows, _ in tuned.plan.curve] == [1, 2, 4]
    assert tuned.plan.batch_max == 1


def test_a_model_that_gains_is_measured_to_the_end(golden: Path) -> None:
    tuned = Device({"net": Net(5, row_ms=0.5)}).tune(golden)

    assert [rows for rows, _ in tuned.plan.curve] == [1, 2, 4, 8, 16, 32, 64]


def test_the_curve_ends_where_the_memory_of_the_release_does(golden: Path) -> None:
    device = Device({"net": Net(5, row_ms=0.5)}, row_mb=10.0)

    tuned = device.tune(golden, slo=Slo(memory_mb=100))

    assert tuned.plan.curve[-1][0] == 8


def test_a_disturbed_measurement_does_not_look_like_a_gain(golden: Path) -> None:
    device = Device({"net": Net(10)})
    asked = []
    undisturbed = device.call_ms

    def call_ms(session: Session, feed: Feed) -> float:
        asked.append(len(feed[0]))
        return undisturbed(session, feed) * (3.0 if len(asked) == 1 else 1.0)

    device.call_ms = call_ms  # type: ignore[method-assign]  # Somebody else had the processor, once.
    tuned = device.tune(golden)

    assert tuned.plan.batch_max == 1
    assert tuned.plan.curve[0] == (1, 10.0)


def test_rows_that_answer_otherwise_together_are_never_batched(golden: Path) -> None:
    tuned = Device({"dynamic": Net(5, row_ms=0.1, batched_factor=2.1)}).tune(golden)

    assert tuned.plan.batch_max == 1


@pytest.mark.parametrize("serving", [Serving(batch_max=1), Serving(state=(StateTensor(input="x", output="y"),))])
def test_what_the_publisher_rules_out_is_not_measured(golden: Path, serving: Serving) -> None:
    tuned = Device({"net": Net(5, row_ms=0.1)}).tune(golden, serving=serving)

    assert [rows for rows, _ in tuned.plan.curve] == [1]
    assert tuned.plan.batch_max == 1


def test_the_publishers_largest_batch_is_measured_itself(golden: Path) -> None:
    tuned = Device({"net": Net(5, row_ms=0.1)}).tune(golden, serving=Serving(batch_max=6))

    assert [rows for rows, _ in tuned.plan.curve] == [1, 2, 4, 6]
    assert tuned.plan.batch_max == 6


def test_the_publisher_bounds_the_instances(golden: Path) -> None:
    tuned = Device({"net": Net(10)}).tune(golden, cpus=4, threads_max=1, serving=Serving(instances_max=2))

    assert tuned.plan.instances_max == 2


def test_what_is_reported_is_bounded(golden: Path) -> None:
    nets = {f"v{number:02}": Net(10, fallback="why " * 100) for number in range(20)}
    nets |= {f"w{number:02}": Net(1, error=ModelUnloadable("so " * 400)) for number in range(20)}

    tuning: Tuning = Device(nets, load_s=0.0).tune(golden).tuning

    assert len(tuning.alternatives) == TRIALS_MAX
    assert len(tuning.fallback) == TRIAL_TEXT_MAX
    assert all(len(trial.refused) <= TRIAL_TEXT_MAX for trial in tuning.alternatives)


@pytest.mark.parametrize(
    ("cpus", "threads_max", "expected"),
    [
        (1, 1, [(1, 1)]),
        (2, 1, [(1, 2)]),
        (2, 2, [(1, 2), (2, 1)]),
        (4, 4, [(1, 4), (2, 2), (4, 1)]),
        (6, 6, [(1, 6), (2, 3), (4, 1), (6, 1)]),
        (2, 8, [(1, 2), (2, 1)]),
    ],
)
def test_the_processors_are_shared_out_in_every_sensible_way(
    cpus: int, threads_max: int, expected: list[tuple[int, int]]
) -> None:
    assert shapes(cpus, threads_max, 0) == tuple(Shape(*shape) for shape in expected)


def test_a_batch_of_any_size_is_made_of_golden_rows(golden: Path) -> None:
    manifest = manifest_of(("net",))

    make = batches(load_cases(golden, manifest), manifest)

    assert make is not None
    np.testing.assert_array_equal(make(6)[0], np.concatenate([X, X[:2]]))
    assert make(6)[0].flags.c_contiguous
