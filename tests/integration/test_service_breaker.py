"""An engine that keeps failing is spared for a while, over HTTP: refused, probed, and trusted again."""

from msgspec.structs import replace

from harness.asking import Answer, Program, Scripted, program, scripted, serving
from harness.endpoint import MODEL, THREADS, Endpoint, describe, served_by, until
from muster_agent.core.breaker import BreakerSettings, Closed, HalfOpen, Open
from muster_agent.engines.port import Array, InferenceFailed, InputRefused
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.table import Served
from muster_shared.ids import ModelName

OTHER = ModelName("others")
SOON = ServingConfig(breaker=BreakerSettings(calls_min=3, share_max=0.5, open_s=0.05, open_s_max=0.05, probes=2))
LATE = ServingConfig(breaker=BreakerSettings(calls_min=3, share_max=0.5, open_s=600.0, open_s_max=600.0, probes=2))


class Moody(Scripted):
    """An engine that fails while it is ill."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.error: Exception | None = InferenceFailed("the device is gone")

    def _answer(self, x: Array) -> Array:
        if self.error is not None:
            raise self.error
        return x


def other(engine: Scripted) -> Served:
    return served_by(engine, replace(describe("onnxruntime", 1), model=OTHER), THREADS)


def trip(asking: Program) -> list[int]:
    return [asking.infer().status for _ in range(3)]


def until_asked(engine: Scripted, asking: Program) -> Answer:
    """Ask until the engine is asked again."""
    calls, answers = engine.calls, []

    def asked() -> bool:
        answers.append(asking.infer())
        return engine.calls > calls

    until(asked)
    return answers[-1]


def state(endpoint: Endpoint) -> object:
    return endpoint.on_loop(lambda: endpoint.table.place(MODEL).breaker.state)


def test_an_engine_that_fails_is_not_asked_for_a_while() -> None:
    engine = Moody()

    with serving(scripted(engine), config=LATE) as endpoint, program(endpoint) as asking:
        failures = trip(asking)
        refused = asking.infer()
        page = asking.ask("GET", "/metrics").body.decode()

    assert failures == [500, 500, 500]
    assert refused.status == 503
    assert 590 <= int(refused.headers["retry-after"]) <= 600
    assert engine.calls == 3
    assert 'muster_breaker_state{model="sums",version="1.0.1"} 2' in page


def test_other_models_are_served_meanwhile() -> None:
    with serving(scripted(Moody()), other(Scripted()), config=LATE) as endpoint, program(endpoint) as asking:
        trip(asking)
        refused, served = asking.infer(), asking.infer(model=OTHER)

    assert (refused.status, served.status) == (503, 200)


def test_probes_that_succeed_close_it_again() -> None:
    engine = Moody()

    with serving(scripted(engine), config=SOON) as endpoint, program(endpoint) as asking:
        trip(asking)
        engine.error = None
        first = until_asked(engine, asking)
        half_open = state(endpoint)
        until(lambda: asking.infer().status == 200 and isinstance(state(endpoint), Closed))
        later = [asking.infer().status for _ in range(5)]

    assert first.status == 200
    assert isinstance(half_open, HalfOpen)
    assert later == [200] * 5


def test_a_probe_that_fails_opens_it_again() -> None:
    engine = Moody()

    with serving(scripted(engine), config=SOON) as endpoint, program(endpoint) as asking:
        trip(asking)
        probe = until_asked(engine, asking)
        after = state(endpoint)

    assert probe.status == 500
    assert isinstance(after, Open)
    assert after.trips == 2


def test_what_callers_do_wrong_is_not_held_against_the_engine() -> None:
    engine = Moody()
    engine.error = InputRefused("x", "does not please me")

    with serving(scripted(engine), config=LATE) as endpoint, program(endpoint) as asking:
        refusals = [asking.infer().status for _ in range(6)]
        engine.error = None
        answered = asking.infer()

    assert refusals == [400] * 6
    assert answered.status == 200


def test_an_engine_that_hangs_counts_as_failing() -> None:
    engine = Scripted(shut=True)
    hung = ServingConfig(breaker=replace(LATE.breaker, calls_min=1), timeout_s=0.05)

    with serving(scripted(engine), config=hung) as endpoint, program(endpoint) as asking:
        late, refused = asking.infer(), asking.infer()
        engine.gate.set()

    assert late.status == 503
    assert "has not ended" in late.error
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 1
    assert engine.calls == 1


def test_a_new_release_begins_with_a_clean_record() -> None:
    with serving(scripted(Moody()), config=LATE) as endpoint, program(endpoint) as asking:
        trip(asking)
        endpoint.table.switch(MODEL, scripted(Scripted(), 2))
        answered = asking.infer()

    assert answered.status == 200
