"""Stateful models over HTTP, with both engines: each sequence keeps its own state, whatever happens beside it.

The model is a running sum: y = x + s, and s' = s + x, of which callers see x and the outputs.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from harness.asking import Answer, Program, guests, program, serving
from harness.endpoint import INLINE, THREADS, Endpoint, until
from harness.stateful import RUNNING_SUM as MODEL
from harness.stateful import gated, running_sum
from muster_agent.core.plan import ServingPlan
from muster_agent.core.split import Mode
from muster_agent.engines import registry
from muster_agent.engines.port import InferenceFailed
from muster_agent.serving.config import ServingConfig
from muster_shared.bundle import Runtime

BOTH_ENGINES = pytest.mark.parametrize("runtime", registry.RUNTIMES)
PLANS = pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with serving(running_sum(tmp_path, "onnxruntime")) as running:
        yield running


def say(
    asking: Program, x: float, sequence: int | str, *, starts: bool = False, ends: bool = False, **more: str
) -> Answer:
    parameters = {"sequence_id": sequence, "sequence_start": starts, "sequence_end": ends}
    return asking.infer((x,), model=MODEL, parameters=parameters, **more)


def sums(asking: Program, sequence: int | str, *numbers: float) -> list[float]:
    """Begin a sequence, and return what each of its requests is answered."""
    return [say(asking, x, sequence, starts=not at).data[0] for at, x in enumerate(numbers)]


@BOTH_ENGINES
@PLANS
def test_interleaved_sequences_keep_their_own_sums(tmp_path: Path, runtime: Runtime, plan: ServingPlan) -> None:
    with serving(running_sum(tmp_path, runtime, plan)) as endpoint, program(endpoint) as asking:
        one, two = [], []
        for at in range(5):
            one.append(say(asking, 1.0, 7, starts=at == 0).data[0])
            two.append(say(asking, 10.0, "camera-2", starts=at == 0).data[0])

    assert one == [1, 2, 3, 4, 5]
    assert two == [10, 20, 30, 40, 50]


@BOTH_ENGINES
def test_sequences_keep_their_sums_also_when_they_are_asked_at_once(tmp_path: Path, runtime: Runtime) -> None:
    def sequence(endpoint: Endpoint, number: int) -> list[float]:
        with program(endpoint) as asking:
            return sums(asking, number, *[float(number)] * 30)

    plan = ServingPlan(inline=False, batch_max=8, instances_max=2)
    with serving(running_sum(tmp_path, runtime, plan)) as endpoint, ThreadPoolExecutor(6) as programs:
        found = list(programs.map(lambda number: sequence(endpoint, number), range(1, 7)))

    assert found == [[float(number * at) for at in range(1, 31)] for number in range(1, 7)]


def test_requests_of_one_sequence_run_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    session, served = gated(tmp_path)

    with serving(served) as endpoint, ThreadPoolExecutor(5) as programs, program(endpoint) as asking:
        say(asking, 0.0, 1, starts=True)
        session.gate.clear()
        answers = []
        for at in range(5):

            def ask(x: float = 10.0**at) -> Answer:
                with program(endpoint) as another:
                    return say(another, x, 1)

            answers.append(programs.submit(ask))
            until(partial(_are, endpoint, at + 1))
        session.gate.set()
        found = [answer.result().data[0] for answer in answers]

    assert found == [1, 11, 111, 1111, 11111]


def test_a_start_begins_anew(endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        before = sums(asking, 1, 5.0, 5.0)
        after = sums(asking, 1, 1.0, 1.0)

    assert (before, after) == ([5, 10], [1, 2])


def test_after_its_end_a_sequence_must_be_started_again(endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        say(asking, 1.0, 1, starts=True)
        last = say(asking, 1.0, 1, ends=True)
        gone = say(asking, 1.0, 1)
        left = endpoint.on_loop(lambda: _sequences(endpoint))

    assert last.data == [2]
    assert gone.status == 400
    assert left == 0


def test_a_sequence_that_was_not_started_is_told_what_to_do(endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        unknown, without = say(asking, 1.0, 99), asking.infer((1.0,), model=MODEL)

    assert unknown.status == without.status == 400
    assert "sequence_start" in unknown.error
    assert "sequence_id" in without.error


def test_two_rows_cannot_be_one_step_of_a_sequence(endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        parameters = {"sequence_id": 1, "sequence_start": True}
        answer = asking.infer((1.0,), (2.0,), model=MODEL, parameters=parameters)

    assert answer.status == 400
    assert "one row" in answer.error


def test_the_state_is_not_for_callers_to_send(endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        x = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
        asked = {"inputs": [x, {**x, "name": "s"}], "parameters": {"sequence_id": 1, "sequence_start": True}}
        answer = asking.ask("POST", f"/v2/models/{MODEL}/infer", asked)
        metadata = asking.ask("GET", f"/v2/models/{MODEL}").json

    assert answer.status == 400
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["x"]


def test_an_idle_sequence_is_forgotten(tmp_path: Path) -> None:
    config = ServingConfig(sequence_idle_s=0.001)

    with serving(running_sum(tmp_path, "onnxruntime"), config=config) as endpoint, program(endpoint) as asking:
        say(asking, 1.0, 1, starts=True)
        until(lambda: say(asking, 1.0, 1).status == 400)
        say(asking, 1.0, 2, starts=True)
        until(lambda: say(asking, 1.0, 1).status == 400 and endpoint.on_loop(lambda: not _sequences(endpoint)))


def test_more_sequences_than_there_may_be_are_told_to_come_later(tmp_path: Path) -> None:
    config = ServingConfig(sequences_max=2)

    with serving(running_sum(tmp_path, "onnxruntime"), config=config) as endpoint, program(endpoint) as asking:
        first = [say(asking, 1.0, number, starts=True).status for number in (1, 2)]
        third = say(asking, 1.0, 3, starts=True)
        say(asking, 1.0, 1, ends=True)
        after = say(asking, 1.0, 3, starts=True)

    assert first == [200, 200]
    assert third.status == 429
    assert int(third.headers["retry-after"]) >= 1
    assert after.status == 200


def test_a_call_that_failed_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    session, served = gated(tmp_path)

    with serving(served) as endpoint, program(endpoint) as asking:
        before = say(asking, 1.0, 1, starts=True)
        session.error = InferenceFailed("out of memory")
        failed = say(asking, 10.0, 1)
        session.error = None
        again = say(asking, 10.0, 1)

    assert before.data == [1]
    assert failed.status == 500
    assert again.data == [11]


def test_an_engine_that_hangs_does_not_hold_the_sequence_for_ever(tmp_path: Path) -> None:
    session, served = gated(tmp_path)

    with serving(served, config=ServingConfig(timeout_s=0.3)) as endpoint, program(endpoint) as asking:
        say(asking, 1.0, 1, starts=True)
        open_gate, session.gate = session.gate, threading.Event()
        late = say(asking, 10.0, 1)
        hung, session.gate = session.gate, open_gate
        again = say(asking, 10.0, 1)
        hung.set()

    assert late.status == 503
    assert again.data == [11]


def test_a_hot_swap_ends_the_sequences_and_says_so(tmp_path: Path, endpoint: Endpoint) -> None:
    with program(endpoint) as asking:
        say(asking, 1.0, 1, starts=True)
        endpoint.table.switch(MODEL, running_sum(tmp_path, "onnxruntime", version=1))
        gone = say(asking, 1.0, 1)
        anew = sums(asking, 1, 1.0, 1.0)

    assert gone.status == 400
    assert "sequence_start" in gone.error
    assert anew == [1, 2]


def test_a_canary_never_takes_requests_out_of_the_middle_of_a_sequence(tmp_path: Path, endpoint: Endpoint) -> None:
    candidate = running_sum(tmp_path, "onnxruntime", version=1)

    with program(endpoint) as asking:
        endpoint.table.begin_trial(candidate, Mode.CANARY, 0.5, iter([0.1, 0.9] * 100).__next__)
        without_key = sums(asking, 1, *[1.0] * 10)
        with_keys = []
        for key in range(20):
            named = f"camera-{key}"
            answers = [say(asking, 1.0, named, starts=at == 0, Muster_Request_Key=named) for at in range(4)]
            with_keys.append(([answer.data[0] for answer in answers], {answer.version for answer in answers}))

    assert without_key == [float(at) for at in range(1, 11)]
    assert all(found == [1, 2, 3, 4] and len(versions) == 1 for found, versions in with_keys)
    assert {version for _, versions in with_keys for version in versions} == {"1.0.0", "1.0.1"}


def _sequences(endpoint: Endpoint) -> int:
    sequences = endpoint.table.place(MODEL).sequences
    assert sequences is not None
    return len(sequences)


def _are(endpoint: Endpoint, count: int) -> bool:
    return guests(endpoint, MODEL) == count
