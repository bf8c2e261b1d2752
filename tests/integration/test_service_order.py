"""Who goes first over HTTP: classes, the time of day for batch work, deadlines in the queue, the log of the slow."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from harness.asking import Answer, Scripted, guests, program, scripted, serving
from harness.endpoint import INLINE, MODEL, THREADS, WAIT_S, Endpoint, describe, served_by, until
from muster_agent.core.plan import ServingPlan
from muster_agent.core.split import Mode
from muster_agent.serving.config import ModelConfig, QueueTimeouts, ServingConfig
from muster_shared.ids import ModelName

OTHER = ModelName("others")
PLANS = pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])


class Crowd:
    """Programs that ask at the same time, each with a number in its first column."""

    def __init__(self, endpoint: Endpoint, programs: ThreadPoolExecutor, model: ModelName) -> None:
        self._endpoint = endpoint
        self._model = model
        self._programs = programs
        self.answers: list[Future[Answer]] = []

    def ask(self, number: float, priority: str | None) -> None:
        """Ask, and return when the request waits or runs: nothing may be answered meanwhile."""

        def ask() -> Answer:
            parameters = None if priority is None else {"priority": priority}
            with program(self._endpoint) as asking:
                return asking.infer((number, 0.0, 0.0), model=self._model, parameters=parameters)

        before = guests(self._endpoint, self._model)
        self.answers.append(self._programs.submit(ask))
        until(lambda: guests(self._endpoint, self._model) > before)

    def statuses(self) -> list[int]:
        return [answer.result(WAIT_S).status for answer in self.answers]


@contextmanager
def crowd(endpoint: Endpoint, size: int = 16, model: ModelName = MODEL) -> Iterator[Crowd]:
    with ThreadPoolExecutor(size) as programs:
        yield Crowd(endpoint, programs, model)


def order(engine: Scripted) -> list[float]:
    return [float(x[0, 0]) for x in engine.seen]


def test_urgent_work_goes_before_what_waited_longer() -> None:
    engine = Scripted(shut=True)

    with serving(scripted(engine)) as endpoint, crowd(endpoint) as callers:
        callers.ask(0, "now")
        assert engine.began.acquire(timeout=WAIT_S)
        for number, priority in enumerate(["later", "soon", "later", "now", "soon", "now"], 1):
            callers.ask(number, priority)
        engine.gate.set()
        statuses = callers.statuses()

    assert order(engine) == [0, 4, 6, 2, 5, 1, 3]
    assert statuses == [200] * 7


def test_a_flood_for_later_does_not_delay_an_urgent_request_by_more_than_what_runs() -> None:
    engine = Scripted(shut=True)

    with serving(scripted(engine)) as endpoint, crowd(endpoint, 40) as callers:
        for number in range(30):
            callers.ask(number, "later")
        assert engine.began.acquire(timeout=WAIT_S)
        callers.ask(99, "now")
        engine.gate.set()
        statuses = callers.statuses()

    assert order(engine)[:2] == [0, 99]
    assert sorted(order(engine)) == [*range(30), 99]
    assert statuses == [200] * 31


@PLANS
def test_work_for_later_waits_also_for_the_urgent_work_of_other_models(plan: ServingPlan) -> None:
    busy, idle = Scripted(shut=True), Scripted()
    other = replace(describe("onnxruntime", 1), model=OTHER)

    with (
        serving(scripted(busy), served_by(idle, other, plan)) as endpoint,
        crowd(endpoint) as urgent,
        crowd(endpoint, model=OTHER) as later,
        program(endpoint) as asking,
    ):
        urgent.ask(0, "now")
        later.ask(1, "later")
        asking.infer((2.0, 0.0, 0.0), model=OTHER)
        while_busy = order(idle)
        busy.gate.set()
        statuses = urgent.statuses() + later.statuses()

    assert while_busy == [2]
    assert order(idle) == [2, 1]
    assert statuses == [200, 200]


def test_the_operator_may_put_a_model_into_a_class() -> None:
    engine = Scripted()
    config = ServingConfig(models={MODEL: ModelConfig(priority="later")})

    with (
        serving(scripted(engine), config=config) as endpoint,
        crowd(endpoint) as callers,
        program(endpoint) as asking,
    ):
        endpoint.table.open_later(False)
        callers.ask(1, None)
        asking.infer((2.0, 0.0, 0.0), Muster_Priority="now")
        endpoint.table.open_later(True)
        statuses = callers.statuses()

    assert order(engine) == [2, 1]
    assert statuses == [200]


@PLANS
def test_outside_its_window_work_for_later_waits_while_the_urgent_is_served(plan: ServingPlan) -> None:
    engine = Scripted()

    with serving(scripted(engine, plan=plan)) as endpoint, crowd(endpoint) as callers, program(endpoint) as asking:
        endpoint.table.open_later(False)
        callers.ask(7, "later")
        urgent = [asking.infer((float(number), 0.0, 0.0)).status for number in range(5)]
        before = order(engine)
        endpoint.table.open_later(True)
        statuses = callers.statuses()

    assert urgent == [200] * 5
    assert before == [0, 1, 2, 3, 4]
    assert statuses == [200]
    assert order(engine)[-1] == 7


def test_each_class_waits_no_longer_than_it_may() -> None:
    engine = Scripted(shut=True)
    config = ServingConfig(queue_timeout_ms=QueueTimeouts(soon=50))

    with serving(scripted(engine), config=config) as endpoint, crowd(endpoint) as callers:
        callers.ask(0, "now")
        assert engine.began.acquire(timeout=WAIT_S)
        callers.ask(1, "soon")
        callers.ask(2, "now")
        late = callers.answers[1].result(WAIT_S)
        patient = callers.answers[2].done()
        engine.gate.set()
        statuses = callers.statuses()

    assert late.status == 503
    assert "0.05 s" in late.error
    assert not patient
    assert statuses == [200, 503, 200]
    assert order(engine) == [0, 2]


def test_a_request_may_bound_its_own_wait() -> None:
    engine = Scripted(shut=True)

    with serving(scripted(engine)) as endpoint, crowd(endpoint) as callers, program(endpoint) as asking:
        callers.ask(0, "now")
        assert engine.began.acquire(timeout=WAIT_S)
        late = asking.infer(parameters={"timeout": 20_000})
        engine.gate.set()
        statuses = callers.statuses()

    assert late.status == 503
    assert "0.02 s" in late.error
    assert statuses == [200]


def test_a_slow_request_is_logged_with_where_its_time_went() -> None:
    engine = Scripted(shut=True)
    config = ServingConfig(slow_request_ms=20.0)

    with (
        capture_logs() as logs,
        serving(scripted(engine), config=config) as endpoint,
        crowd(endpoint) as callers,
        program(endpoint) as asking,
    ):
        callers.ask(0, "now")
        assert engine.began.acquire(timeout=WAIT_S)
        late = asking.infer(parameters={"timeout": 50_000})  # It makes the other one slow, without a sleep.
        engine.gate.set()
        callers.statuses()

    slow = [line for line in logs if line["event"] == "request_slow"]
    assert late.status == 503
    assert len(slow) == 2
    assert all(line["model"] == MODEL and line["version"] == "1.0.1" and line["rows"] == 1 for line in slow)
    assert slow[0]["engine_ms"] == 0.0  # The one that never ran.
    assert slow[1]["total_ms"] >= slow[1]["engine_ms"] > 20.0


def test_without_a_bound_nothing_is_slow() -> None:
    with capture_logs() as logs, serving(scripted(Scripted())) as endpoint, program(endpoint) as asking:
        asking.infer()

    assert not [line for line in logs if line["event"] == "request_slow"]


def test_a_shadow_is_never_a_slow_request() -> None:
    engine, candidate = Scripted(), Scripted(shut=True)
    config = ServingConfig(slow_request_ms=20.0)

    with (
        capture_logs() as logs,
        serving(scripted(engine), config=config) as endpoint,
        program(endpoint) as asking,
    ):
        endpoint.table.begin_trial(scripted(candidate, 2), Mode.SHADOW, 1.0, lambda: 0.5)
        asking.infer()
        assert candidate.began.acquire(timeout=WAIT_S)
        engine.gate.clear()
        late = asking.infer(parameters={"timeout": 50_000})  # It makes the shadow slow, without a sleep.
        engine.gate.set()
        candidate.gate.set()
        until(lambda: endpoint.on_loop(lambda: endpoint.table.trials[MODEL].trial.snapshot()).compared == 1)

    slow = [line["version"] for line in logs if line["event"] == "request_slow"]
    assert late.status == 503
    assert slow == ["1.0.1"]
