"""What is counted of a release: every answer once, kinds in their places, and inputs by a sample of them."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.service_alone import MODEL, THREAD, Engine, Gated, Setup, play, served
from muster_agent.core.split import Mode
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.metrics.cpu import CpuShares
from muster_agent.metrics.fold import FOLD_ROWS, ROWS_A_LOOK, Meter, meter
from muster_agent.metrics.meters import LOOK_ROWS, LOOK_S_MAX, LOOK_S_MIN, AllMeters, look_due_s
from muster_agent.metrics.port import DriftState, Tally
from muster_agent.metrics.reference import WINDOW, InputReference, Reference
from muster_agent.metrics.samples import ELEMENTS_MAX, SAMPLED_EVERY, Sampler
from muster_agent.serving import prometheus
from muster_agent.serving.call import Batch, Call, Priority
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.execution import Times
from muster_agent.serving.stats import WindowStats
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256
from muster_shared.metrics import CLASSES_MAX, CONFIDENCE_BINS, INPUTS, Kind, latency_place

BUNDLE = Sha256("0" * 64)
PLAIN, OUT_OF_RANGE, OUTLIER, NOT_FINITE, REFUSED, FAILED, TIMED_OUT, REJECTED = range(len(INPUTS))


class Answered(Call):
    def settle(self) -> None:
        raise AssertionError("a meter settles nobody")


class Busy:
    """A place that a meter listens to."""

    def __init__(self) -> None:
        self.counted: Callable[[Sequence[Call]], None] | None = None
        self.told = 0


class Watcher:
    """An `Observer` that writes down what it is told."""

    def __init__(self) -> None:
        self.state = DriftState.QUIET
        self.means: list[float] = []
        self.by_class = np.zeros(0, np.int64)
        self.rows: dict[str, list[float]] = {}

    def window(self, mean_confidence: float) -> None:
        self.means.append(mean_confidence)

    def classes(self, counts: npt.NDArray[np.int64]) -> None:
        self.by_class = counts if not self.by_class.size else self.by_class + counts

    def inputs(self, name: str, row_means: npt.NDArray[np.float64], row_stds: npt.NDArray[np.float64]) -> None:
        self.rows.setdefault(name, []).extend(row_means.tolist())

    def hour_over(self) -> None:
        """It has no hours."""


def manifest(classes: int = 3, *, inputs: Sequence[TensorSpec] = (), labels: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        model=ModelName("m"),
        version="1.0.0",
        release=1,
        inputs=tuple(inputs) or (TensorSpec(name="x", datatype="FP32", shape=(-1, 2), finite=False),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, classes)),),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        labels=labels,
    )


def reference(low: float = -1.0, high: float = 1.0) -> Reference:
    """Rows have a mean from `low` to `high`, and a deviation up to 1."""
    known = InputReference(
        mean_edges=np.array([0.0]),
        mean_counts=np.array([1, 1]),
        std_edges=np.array([0.5]),
        std_counts=np.array([1, 1]),
        tails=np.array([low, high, 0.0, 1.0]),
    )
    return Reference(
        inferences=2,
        confidence_windows=np.zeros(0, np.float32),
        confidence_error=0.0,
        classes=np.zeros(0, np.int64),
        confidence=np.zeros(CONFIDENCE_BINS, np.int64),
        inputs={"x": known},
    )


def made(
    release: Manifest | None = None, known: Reference | None = None, watcher: Watcher | None = None
) -> tuple[Meter, WindowStats]:
    release, stats = release or manifest(), WindowStats()
    return meter(release, BUNDLE, stats, Sampler(release, known), watcher), stats


def call(scores: Array, x: Array | None = None, *, batch: Batch | None = None, start: int = 0) -> Answered:
    rows = len(scores)
    x = np.zeros((rows, 2), np.float32) if x is None else x
    one = Answered((x.tobytes(),), (x.shape[1:],), rows)
    one.batch, one.start = batch or Batch((scores,), 0, rows_axis=True), start
    return one


def ran(counting: Meter, stats: WindowStats, calls: Sequence[Call], engine_us: int = 100) -> None:
    stats.ran(calls, Times(0, 0, engine_us * 1000), engine_us * 1000)
    assert counting.listener is not None
    counting.listener(calls)


def shown(scores: Array) -> Tally:
    counting, stats = made(manifest(scores.shape[1]))
    for row in range(len(scores)):
        ran(counting, stats, [call(scores[row : row + 1])])
    return counting.take()


def test_every_answer_is_counted_once_by_its_class_and_confidence() -> None:
    scores = np.array([[0.2, 0.72, 0.08], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]], np.float32)

    tally = shown(scores)

    assert tally.inferences == 3
    assert tally.counts[Kind.CLASSES] == {0: 1, 1: 1, 2: 1}
    assert tally.counts[Kind.CONFIDENCE] == {8: 1, 14: 1, 19: 1}


def test_scores_that_are_no_probabilities_are_as_sure_as_softmax_makes_them() -> None:
    tally = shown(np.array([[0.0, 5.0, -5.0]], np.float32))

    assert tally.counts[Kind.CONFIDENCE] == {19: 1}


def test_scores_that_are_no_numbers_are_of_no_class() -> None:
    tally = shown(np.array([[np.nan, 0.5, 0.5], [0.0, 1.0, 0.0]], np.float32))

    assert tally.inferences == 2
    assert tally.counts[Kind.CLASSES] == {1: 1}


def test_classes_beyond_the_last_but_one_are_counted_as_the_last() -> None:
    scores = np.zeros((2, CLASSES_MAX + 50), np.float32)
    scores[0, CLASSES_MAX + 49] = scores[1, 3] = 1.0

    tally = shown(scores)

    assert tally.release.classes == CLASSES_MAX
    assert tally.counts[Kind.CLASSES] == {3: 1, CLASSES_MAX - 1: 1}


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=30), st.integers(0, 99))
def test_whatever_batches_come_all_rows_are_counted(batches: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counting, stats = made()
    expected = np.zeros(3, np.int64)
    for sizes in batches:
        scores = rng.dirichlet(np.ones(3), sum(sizes)).astype(np.float32)
        expected += np.bincount(scores.argmax(axis=1), minlength=3)
        batch, start, calls = Batch((scores,), 0, rows_axis=True), 0, []
        for size in sizes:
            calls.append(call(scores[start : start + size], batch=batch, start=start))
            start += size
        ran(counting, stats, calls)

    tally = counting.take()

    assert [tally.counts[Kind.CLASSES].get(each, 0) for each in range(3)] == expected.tolist()
    assert tally.inferences == expected.sum()


def test_a_failed_call_of_a_batch_leaves_the_others_counted() -> None:
    counting, stats = made()
    good, bad = call(np.eye(3, dtype=np.float32)[:1]), call(np.eye(3, dtype=np.float32)[1:2])
    bad.batch, bad.error = None, InferenceFailed("ill")

    ran(counting, stats, [bad, good])
    ran(counting, stats, [bad])
    tally = counting.take()

    assert tally.counts[Kind.CLASSES] == {0: 1}
    assert tally.counts[Kind.INPUTS] == {PLAIN: 1, FAILED: 2}


def test_answers_of_another_width_than_promised_are_left_out_and_break_nothing() -> None:
    counting, stats = made()
    for scores in (np.eye(3, dtype=np.float32)[:1], np.ones((1, 7), np.float32), np.eye(3, dtype=np.float32)[2:]):
        ran(counting, stats, [call(scores)])

    tally = counting.take()

    assert tally.counts[Kind.CLASSES] == {0: 1, 2: 1}


def test_answers_that_are_not_contiguous_are_counted_all_the_same() -> None:
    counting, stats = made()
    for index in range(3):
        ran(counting, stats, [call(np.eye(6, dtype=np.float32)[:, ::2][2 * index : 2 * index + 1])])

    assert counting.take().counts[Kind.CLASSES] == {0: 1, 1: 1, 2: 1}


def test_what_waits_is_folded_before_it_is_much_and_a_large_batch_at_once() -> None:
    wide = manifest(4096)
    counting, stats = made(wide)
    longest = 0

    for _ in range(500):
        ran(counting, stats, [call(np.ones((1, 4096), np.float32))])
        longest = max(longest, len(counting._waiting))
    ran(counting, stats, [call(np.ones((1024, 4096), np.float32))])

    assert longest * 4096 * 4 <= 1024 * 1024
    assert not counting._waiting
    assert counting.take().inferences == 1524


def test_the_mean_confidence_of_each_window_is_told_in_order_however_it_is_folded() -> None:
    watcher = Watcher()
    counting, stats = made(watcher=watcher)
    sure = np.linspace(0.4, 1.0, 3 * WINDOW + 50)
    for number, top in enumerate(sure.tolist()):
        ran(counting, stats, [call(np.array([[top, 1 - top, 0.0]], np.float32))])
        if number % 70 == 0:
            counting.look()
    counting.look()

    expected = sure[: 3 * WINDOW].reshape(3, WINDOW)
    assert watcher.means == pytest.approx(np.maximum(expected, 1 - expected).mean(axis=1).tolist(), abs=1e-5)
    assert watcher.by_class.sum() == len(sure)


def test_latencies_come_on_the_fleets_grid_and_are_those_of_the_engine() -> None:
    counting, stats = made()
    for us in (1, 90, 100, 5000, 10_000_000_000):
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1])], engine_us=us)

    counts = counting.take().counts[Kind.LATENCY]

    expected: dict[int, int] = {}
    for us in (1, 90, 100, 5000, 10_000_000_000):
        expected[latency_place(us)] = expected.get(latency_place(us), 0) + 1
    assert counts == expected


def test_labels_that_came_back_are_counted_by_true_class_and_whether_it_was_right() -> None:
    counting, stats = made()

    stats.labelled(right=True, true=2)
    stats.labelled(right=False, true=0)
    first = counting.take().counts[Kind.FEEDBACK]
    stats.labelled(right=False, true=0)
    stats.labelled(right=False)
    second = counting.take().counts[Kind.FEEDBACK]

    assert first == {5: 1, 0: 1}
    assert second == {0: 1, 6: 1}  # What the release does not know it cannot have got right.


def test_a_tally_holds_what_came_since_the_last_and_nothing_from_before_the_meter() -> None:
    release, stats = manifest(), WindowStats()
    stats.refused()
    stats.labelled(right=True, true=1)
    counting = meter(release, BUNDLE, stats, Sampler(release, None))
    stats.rejected()

    first, second = counting.take(), counting.take()

    assert first.counts == {Kind.INPUTS: {REJECTED: 1}}
    assert second == Tally(first.release)


def test_inputs_are_plain_odd_or_no_numbers_as_the_reference_has_it() -> None:
    counting, stats = made(known=reference())
    for mean in (0.0, 0.9, 1.2, 50.0, float("nan")):
        counting.look()  # What comes next is sampled.
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1], np.full((1, 2), mean, np.float32))])
    stats.refused()
    stats.timed_out()

    counts = counting.take().counts[Kind.INPUTS]

    assert counts == {PLAIN: 2, OUT_OF_RANGE: 1, OUTLIER: 1, NOT_FINITE: 1, REFUSED: 1, TIMED_OUT: 1}


def test_what_a_sample_of_the_inputs_shows_is_scaled_to_all_that_was_answered() -> None:
    counting, stats = made(known=reference())
    rows = 40 * SAMPLED_EVERY
    for number in range(rows):
        x = np.full((1, 2), 50.0 if number // SAMPLED_EVERY % 4 == 0 else 0.0, np.float32)
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1], x)])

    counts = counting.take().counts[Kind.INPUTS]

    assert sum(counts.values()) == rows
    assert counts[OUTLIER] == pytest.approx(rows / 4, rel=0.05)


def test_of_a_large_input_a_thin_copy_has_the_same_mean() -> None:
    size = 40 * ELEMENTS_MAX
    large = TensorSpec(name="x", datatype="FP32", shape=(-1, size))
    release, watcher = manifest(inputs=(large,)), Watcher()
    counting, stats = made(release, reference(), watcher)
    pixels = np.tile(np.array([0.0, 0.3, 0.9], np.float32), size // 3 + 1)[:size]

    ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1], pixels[None])])
    counting.look()
    ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1], pixels[None])])
    counting.look()

    assert watcher.rows["x"] == pytest.approx([0.4], abs=0.001)


def test_an_input_in_memory_that_others_write_to_is_copied_at_once() -> None:
    watcher = Watcher()
    counting, stats = made(known=reference(), watcher=watcher)
    shared = bytearray(np.full((1, 2), 0.5, np.float32).tobytes())
    one = call(np.eye(3, dtype=np.float32)[:1])
    one.tensors = (memoryview(shared),)

    counting.look()
    ran(counting, stats, [one])
    shared[:] = bytes(8)
    counting.look()

    assert watcher.rows["x"] == [0.5]


def test_nothing_is_kept_of_answers_without_classes() -> None:
    pixels = TensorSpec(name="y", datatype="FP32", shape=(-1, 20, 50))
    release = msgspec.structs.replace(manifest(), outputs=(pixels,))
    counting, stats = made(release, reference())
    for _ in range(3 * SAMPLED_EVERY):
        ran(counting, stats, [call(np.ones((1, 1000), np.float32))])

    assert not counting._waiting
    tally = counting.take()
    assert tally.release.classes == 0
    assert tally.counts.keys() == {Kind.LATENCY, Kind.INPUTS}


def test_a_release_that_no_longer_serves_is_told_once_more_and_then_no_more() -> None:
    tallies: list[list[Tally]] = []

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        setup.table.switch(MODEL, served(Engine(), 1))
        await setup.submit().outcome
        setup.table.switch(MODEL, served(Engine(), 2))
        await setup.submit().outcome
        tallies.extend([meters.take(), meters.take()])

    play(scenario, served(Engine()))

    assert [(each.release.version, each.inferences) for each in tallies[0]] == [("1.0.1", 1), ("1.0.2", 1)]
    assert [(each.release.version, each.inferences) for each in tallies[1]] == [("1.0.2", 0)]


def test_an_unloaded_model_is_still_told_of() -> None:
    found: list[Tally] = []

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table, unloaded=lambda: frozenset({MODEL}))
        setup.table.switch(MODEL, served(Engine(), 2))
        setup.table.remove(MODEL)
        meters.take()
        found.extend(meters.take())
        setup.table.switch(MODEL, served(Engine(), 2))

    play(scenario, served(Engine()))

    assert [each.release.version for each in found] == ["1.0.2"]


def test_shadows_are_not_counted_and_canaries_are() -> None:
    seen: dict[Mode, dict[str, int]] = {}

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        setup.table.switch(MODEL, served(Engine(), 1))
        for mode in (Mode.SHADOW, Mode.CANARY):
            setup.table.begin_trial(served(Engine(), 2), mode, 1.0, lambda: 0.0)
            for _ in range(5):
                await setup.submit().outcome
            seen[mode] = {tally.release.version: tally.inferences for tally in meters.take()}

    play(scenario, served(Engine()))

    assert seen[Mode.SHADOW] == {"1.0.1": 5}
    assert seen[Mode.CANARY] == {"1.0.1": 0, "1.0.2": 5}


def test_with_metrics_off_nothing_is_kept_and_the_twin_still_knows_the_processor_time() -> None:
    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table, counting=False)
        release = served(Engine(), 1)
        setup.table.switch(MODEL, release)
        meters.look(1.0, 10.0)
        await setup.submit().outcome
        meters.look(1.5, 11.0)

        assert setup.place.counted is None
        assert meters.take() == []
        assert meters.cpu_ms(release.manifest_sha256) is not None
        assert meters.drift(release.manifest_sha256) is None

    play(scenario, served(Engine()))


def test_an_engine_that_hangs_counts_as_timed_out_not_as_failed() -> None:
    found: list[Tally] = []
    engine = Gated()

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        setup.table.switch(MODEL, served(engine, 1, plan=THREAD))
        one = setup.submit()
        with pytest.raises(Exception, match="engine has not ended"):
            await one.outcome
        engine.gate.set()
        found.extend(meters.take())

    play(scenario, served(Engine()), ServingConfig(timeout_s=0.05))

    assert found[0].counts[Kind.INPUTS] == {TIMED_OUT: 1}


def test_processor_time_of_a_release_that_serves_again_goes_on() -> None:
    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        first, second = served(Engine(), 1), served(Engine(), 2)
        setup.table.switch(MODEL, first)
        found = meters.of(first.manifest_sha256)
        assert found is not None
        found.cpu_ms = 50.0
        setup.table.switch(MODEL, second)
        meters.take()
        setup.table.switch(MODEL, served(Engine(), 1))
        meters.look(1.0, 10.0)

        assert meters.cpu_ms(first.manifest_sha256) == 50.0
        assert meters.cpu_ms(second.manifest_sha256) == 0.0

    play(scenario, served(Engine()))


def test_the_page_for_prometheus_has_what_the_meter_knows_and_no_drift_that_is_unknown() -> None:
    pages: list[str] = []

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        release = served(Engine(), 1)
        setup.table.switch(MODEL, release)
        found = meters.of(release.manifest_sha256)
        assert found is not None
        found.cpu_ms = 1500.0
        pages.append(prometheus.render(setup.table.serving, {}))
        found.observer = Watcher()
        pages.append(prometheus.render(setup.table.serving, {}))

    play(scenario, served(Engine()))

    assert 'muster_cpu_seconds_total{model="echo",version="1.0.1"} 1.5\n' in pages[0]
    assert "muster_drift{" not in pages[0]
    assert 'muster_drift{model="echo",version="1.0.1"} 0\n' in pages[1]


def test_a_request_is_slow_from_its_arrival_on_unless_it_was_for_later() -> None:
    stats = WindowStats()
    stats.slow_ns = 1000
    calls = [call(np.eye(3, dtype=np.float32)[:1]) for _ in range(3)]
    calls[1].arrived_ns = 1500
    calls[2].priority = Priority.LATER

    for one in calls:
        stats.ran([one], Times(1900, 1900, 2000), 2000)

    assert stats.snapshot().slow == 1


def test_processor_time_is_shared_out_by_the_engines_time_without_what_the_idle_agent_takes() -> None:
    shares: CpuShares[str] = CpuShares()

    assert shares.share(0.1, 1.0, {"a": 0.0}) == {}
    assert shares.share(0.7, 1.0, {"a": 0.2, "b": 0.1, "c": 0.0}) == pytest.approx({"a": 0.4, "b": 0.2})


@given(st.floats(0, 4), st.floats(0, 4), st.floats(0, 4))
def test_no_more_processor_time_is_shared_out_than_there_was(idle_s: float, process_s: float, engine_s: float) -> None:
    shares: CpuShares[str] = CpuShares()
    shares.share(idle_s, 1.0, {})

    given_out = sum(shares.share(process_s, 1.0, {"a": engine_s}).values())

    assert given_out <= process_s + 1e-9
    assert given_out >= min(process_s, engine_s) - 1e-9


def test_of_a_busy_second_some_are_counted_and_stand_for_all() -> None:
    counting, stats = made()
    busy = Busy()
    counting.listen(busy)
    rng = np.random.default_rng(1)

    for number in range(20 * ROWS_A_LOOK):
        one = call(np.eye(3, dtype=np.float32)[[int(rng.random() < 0.25)]])
        stats.ran([one], Times(0, 0, 1000), 1000)
        if busy.counted is not None:
            busy.told += 1
            busy.counted([one])
        if number % (4 * ROWS_A_LOOK) == 0:
            counting.look()
    tally = counting.take()

    assert busy.told < 6 * ROWS_A_LOOK + 10
    assert sum(tally.counts[Kind.CLASSES].values()) == pytest.approx(tally.inferences, abs=3)
    assert tally.counts[Kind.CLASSES][1] / tally.inferences == pytest.approx(0.25, abs=0.03)
    assert tally.inferences == 20 * ROWS_A_LOOK


def test_fold_rows_is_a_bound_that_a_stream_of_single_answers_keeps() -> None:
    counting, stats = made()
    longest = 0
    for _ in range(FOLD_ROWS + 10):
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1])])
        longest = max(longest, len(counting._waiting))

    assert longest < FOLD_ROWS
    assert len(counting._waiting) == 10


def test_who_was_told_enough_stops_listening_until_the_next_look() -> None:
    counting, stats = made()
    busy = Busy()
    counting.listen(busy)
    for _ in range(ROWS_A_LOOK):
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1])])

    deaf = busy.counted
    counting.look()

    assert deaf is None
    assert busy.counted is not None


def test_inputs_are_sampled_at_even_steps_whatever_is_folded_between() -> None:
    watcher = Watcher()
    counting, stats = made(known=reference(), watcher=watcher)
    for number in range(4 * FOLD_ROWS):
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1], np.full((1, 2), number, np.float32))])
    counting.look()

    assert np.diff(watcher.rows["x"]).tolist() == [SAMPLED_EVERY] * (4 * FOLD_ROWS // SAMPLED_EVERY - 1)


@pytest.mark.parametrize(("rows", "sampled"), [(10, 10), (300, 60), (60_000, 60_000 // SAMPLED_EVERY)])
def test_about_one_input_a_second_is_sampled_on_a_slow_device(rows: int, sampled: int) -> None:
    watcher = Watcher()
    counting, stats = made(known=reference(), watcher=watcher)
    answers = [call(np.eye(3, dtype=np.float32)[:1])]
    for turn in range(2):
        for _ in range(rows):
            ran(counting, stats, answers)
        if turn == 0:
            counting.look()
            counting.pace(60.0)
            watcher.rows.clear()
    counting.look()

    assert len(watcher.rows["x"]) == pytest.approx(sampled, abs=1)


def test_a_sampled_input_does_not_wait_longer_than_a_minute_for_others() -> None:
    watcher = Watcher()
    counting, stats = made(known=reference(), watcher=watcher)
    counting.look()
    ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1])])

    folded = []
    for _ in range(6):
        counting.look(inputs=False)
        counting.pace(10.0)
        folded.append(bool(watcher.rows))

    assert folded == [False, False, False, False, False, True]


def test_the_rate_is_that_of_all_inferences_also_of_those_in_a_tally_between() -> None:
    counting, stats = made()
    for _ in range(5 * ROWS_A_LOOK):
        ran(counting, stats, [call(np.eye(3, dtype=np.float32)[:1])])
    counting.take()
    counting.look()

    assert counting.pace(10.0) == ROWS_A_LOOK / 2
    assert counting.pace(10.0) == 0.0


def test_looks_come_when_enough_was_asked_and_at_least_once_a_minute() -> None:
    pauses = [look_due_s(rate) for rate in (0.0, 1.0, LOOK_ROWS / 10, 50_000.0)]

    assert pauses == [LOOK_S_MIN, LOOK_S_MAX, 10.0, LOOK_S_MIN]


def test_pauses_between_looks_grow_slowly_and_shrink_at_once() -> None:
    pauses: list[float] = []

    async def scenario(setup: Setup) -> None:
        meters = AllMeters(setup.table)
        setup.table.switch(MODEL, served(Engine(), 1))
        now_s = 0.0
        meters.look(0.0, now_s)
        for _ in range(4):
            await setup.submit().outcome
            now_s += 10.0
            pauses.append(meters.look(0.0, now_s))
        now_s += 10.0
        pauses.append(meters.look(0.0, now_s))

    play(scenario, served(Engine()))

    assert pauses == [2.0, 4.0, 8.0, 16.0, LOOK_S_MIN]
