"""What a measured curve makes of the serving of a release."""

from hypothesis import given
from hypothesis import strategies as st

from muster_agent.core.plan import Curve, ServingPlan, call_ms, gain, knee, plan_from_curve
from muster_shared.bundle import Serving, Slo

TINY: Curve = ((1, 0.005), (2, 0.0055), (4, 0.006), (8, 0.008), (16, 0.012), (32, 0.02), (64, 0.037))
MAGIKA: Curve = ((1, 8.5), (2, 17.1), (4, 34.0), (8, 68.0))
CONVOLUTIONAL: Curve = ((1, 12.5), (2, 22.0), (4, 42.0), (8, 83.5))

SIZES = (1, 2, 4, 8, 16, 32, 64)
CURVES = st.integers(1, len(SIZES)).flatmap(
    lambda count: st.lists(st.floats(0.001, 500.0), min_size=count, max_size=count).map(
        lambda took: tuple(zip(SIZES[:count], took, strict=True))
    )
)
SERVINGS = st.builds(
    Serving,
    batch_max=st.integers(0, 100),
    delay_us_max=st.integers(0, 100_000),
    batches_preferred=st.lists(st.integers(1, 100), unique=True, max_size=4).map(lambda sizes: tuple(sorted(sizes))),
    instances_max=st.integers(0, 8),
)


def plan(
    curve: Curve,
    *,
    serving: Serving | None = None,
    slo_ms: float = 1000.0,
    cpus: int = 2,
    threads: int = 1,
    batchable: bool = True,
) -> ServingPlan:
    return plan_from_curve(
        curve,
        serving=serving or Serving(),
        slo=Slo(latency_ms_p95=slo_ms),
        cpus=cpus,
        threads=threads,
        batchable=batchable,
    )


def test_a_tiny_model_runs_on_the_loop_in_batches_as_large_as_still_gain() -> None:
    chosen = plan(TINY)

    assert (chosen.inline, chosen.batch_max, chosen.instances_max, chosen.delay_us) == (True, 64, 1, 0)
    assert chosen.call_ms == 0.005


def test_a_model_that_only_computes_is_not_batched_but_run_on_every_core() -> None:
    chosen = plan(MAGIKA)

    assert (chosen.inline, chosen.batch_max, chosen.instances_max) == (False, 1, 2)


def test_one_call_on_all_cores_has_one_instance() -> None:
    assert plan(MAGIKA, threads=2).instances_max == 1


def test_a_model_that_gains_a_little_stops_at_the_knee() -> None:
    assert knee(CONVOLUTIONAL) == 2
    assert plan(CONVOLUTIONAL).batch_max == knee(CONVOLUTIONAL)


def test_one_slow_measurement_does_not_hide_what_larger_batches_gain() -> None:
    wavering = ((1, 4.0), (2, 8.5), (4, 8.0), (8, 10.0))

    assert knee(wavering) == 8


def test_a_batch_never_takes_longer_than_the_slo_leaves_room_for() -> None:
    curve = ((1, 5.0), (2, 6.0), (4, 8.0), (8, 12.0), (16, 20.0))

    assert plan(curve, slo_ms=1000).batch_max == 16
    assert plan(curve, slo_ms=24).batch_max == 8
    assert plan(curve, slo_ms=6).batch_max == 1


def test_the_publisher_bounds_the_batch_also_between_measured_sizes() -> None:
    assert plan(TINY, serving=Serving(batch_max=6)).batch_max == 6
    assert plan(TINY, serving=Serving(batch_max=1)).batch_max == 1


def test_rows_of_several_requests_never_share_a_call_of_a_model_that_cannot() -> None:
    assert plan(TINY, batchable=False).batch_max == 1


def test_a_call_on_the_loop_never_keeps_it_long() -> None:
    curve = ((1, 0.5), (2, 0.7), (4, 1.1), (8, 1.9), (16, 3.5))

    assert plan(curve).batch_max == 8


def test_a_slow_tail_keeps_calls_from_the_loop() -> None:
    chosen = plan_from_curve(
        ((1, 0.8),), serving=Serving(), slo=Slo(), cpus=2, threads=1, batchable=False, call_ms_p95=1.4
    )

    assert not chosen.inline


def test_nobody_waits_unless_the_publisher_allows_it_and_it_gains() -> None:
    gaining = ((1, 5.0), (2, 6.0), (4, 8.0))

    assert plan(gaining).delay_us == 0
    assert plan(gaining, serving=Serving(delay_us_max=2000)).delay_us == 2000
    assert plan(gaining, serving=Serving(delay_us_max=90_000)).delay_us == 8000
    assert plan(CONVOLUTIONAL, serving=Serving(delay_us_max=2000)).delay_us == 0


def test_preferred_sizes_are_those_that_the_plan_can_reach() -> None:
    assert plan(TINY, serving=Serving(batches_preferred=(1, 4, 16, 100))).preferred == (4, 16)


def test_a_size_between_two_measured_ones_takes_its_share() -> None:
    assert call_ms(((1, 1.0), (2, 2.0), (4, 3.0)), 3) == 2.5
    assert call_ms(((1, 1.0), (2, 2.0), (4, 3.0)), 8) == 6.0


@given(
    curve=CURVES,
    serving=SERVINGS,
    slo_ms=st.floats(0.1, 2000),
    cpus=st.integers(1, 16),
    threads=st.integers(1, 16),
    batchable=st.booleans(),
)
def test_a_plan_keeps_every_bound(
    curve: Curve, serving: Serving, slo_ms: float, cpus: int, threads: int, batchable: bool
) -> None:
    threads = min(threads, cpus)

    chosen = plan(curve, serving=serving, slo_ms=slo_ms, cpus=cpus, threads=threads, batchable=batchable)

    assert 1 <= chosen.batch_max <= (serving.batch_max or curve[-1][0])
    assert chosen.batch_max == 1 or batchable
    if chosen.batch_max > 1:
        took_ms = call_ms(curve, chosen.batch_max)
        assert 2 * took_ms <= slo_ms
        assert took_ms <= 2.0 or not chosen.inline
    assert chosen.inline == (curve[0][1] <= 1.0)
    assert 1 <= chosen.instances_max <= max(1, serving.instances_max or cpus)
    assert chosen.instances_max * threads <= cpus
    assert 0 <= chosen.delay_us <= serving.delay_us_max
    assert not chosen.delay_us or gain(curve, chosen.batch_max) >= 1.5
    assert all(1 < size <= chosen.batch_max for size in chosen.preferred)


@given(curve=CURVES)
def test_the_knee_does_not_depend_on_the_speed_of_the_device(curve: Curve) -> None:
    doubled = tuple((rows, ms * 2) for rows, ms in curve)  # By two: exact in binary, so that nothing is rounded.

    assert knee(doubled) == knee(curve)
