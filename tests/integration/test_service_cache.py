"""Answers from memory over HTTP: the engine is spared, and the answer is as honest as if it had not been."""

import pytest

from harness.asking import Program, Scripted, plus, program, scripted, serving
from harness.endpoint import INLINE, MODEL, THREADS
from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.config import ServingConfig
from muster_shared.bundle import Serving

CACHED = Serving(cache=True)
ROW, OTHER = (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)


def metric(asking: Program, name: str) -> float:
    page = asking.ask("GET", "/metrics").body.decode()
    [line] = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])
def test_the_second_of_two_equal_requests_does_without_the_engine(plan: ServingPlan) -> None:
    engine = Scripted(plus(1))

    with serving(scripted(engine, serving=CACHED, plan=plan)) as endpoint, program(endpoint) as asking:
        first, again, other = asking.infer(ROW), asking.infer(ROW), asking.infer(OTHER)

    assert first.data == again.data == [2, 3, 4]
    assert other.data == [2, 3, 5]
    assert engine.calls == 2


def test_a_remembered_answer_says_whose_it_is_and_has_an_id_of_its_own() -> None:
    with serving(scripted(Scripted(), serving=CACHED)) as endpoint, program(endpoint) as asking:
        first, again = asking.infer(ROW).json, asking.infer(ROW).json
        judged = [
            asking.ask("POST", f"/v1/models/{MODEL}/feedback", {"id": answer["id"], "label": "high"})
            for answer in (first, again)
        ]

    assert first["id"] != again["id"]
    assert again["parameters"] == {**first["parameters"], "request_id": again["id"]}
    assert again["parameters"]["version"] == again["model_version"] == "1.0.1"
    assert [answer.json["right"] for answer in judged] == [True, True]


def test_rows_are_part_of_the_question() -> None:
    engine = Scripted()
    plan = ServingPlan(inline=False, batch_max=2)

    with serving(scripted(engine, plan=plan, serving=CACHED)) as endpoint, program(endpoint) as asking:
        one, two = asking.infer(ROW), asking.infer(ROW, ROW)

    assert len(one.data) == 3
    assert len(two.data) == 6
    assert engine.calls == 2


def test_a_hot_swap_forgets_every_answer() -> None:
    old, new = Scripted(plus(1)), Scripted(plus(2))

    with serving(scripted(old, 1, serving=CACHED)) as endpoint, program(endpoint) as asking:
        before = [asking.infer(ROW).data for _ in range(2)]
        endpoint.table.switch(MODEL, scripted(new, 2, serving=CACHED))
        after = [asking.infer(ROW).data for _ in range(2)]

    assert before == [[2, 3, 4]] * 2
    assert after == [[3, 4, 5]] * 2
    assert (old.calls, new.calls) == (1, 1)


def test_what_the_publisher_does_not_allow_is_never_remembered() -> None:
    engine = Scripted()

    with serving(scripted(engine)) as endpoint, program(endpoint) as asking:
        asking.infer(ROW)
        asking.infer(ROW)

    assert engine.calls == 2


def test_the_device_may_do_without_the_memory() -> None:
    engine = Scripted()
    config = ServingConfig(cache_bytes=0)

    with serving(scripted(engine, serving=CACHED), config=config) as endpoint, program(endpoint) as asking:
        asking.infer(ROW)
        asking.infer(ROW)

    assert engine.calls == 2


def test_a_failure_is_not_remembered() -> None:
    def fail_once(x: Array) -> Array:
        if engine.calls == 1:
            raise InferenceFailed("out of memory")
        return x

    engine = Scripted(fail_once)

    with serving(scripted(engine, serving=CACHED)) as endpoint, program(endpoint) as asking:
        failed, answered = asking.infer(ROW), asking.infer(ROW)

    assert (failed.status, answered.status) == (500, 200)


def test_hits_and_misses_are_counted() -> None:
    with serving(scripted(Scripted(), serving=CACHED)) as endpoint, program(endpoint) as asking:
        for row in (ROW, ROW, ROW, OTHER):
            asking.infer(row)
        [stats] = asking.ask("GET", f"/v2/models/{MODEL}/stats").json["model_stats"]
        hits = metric(asking, "nv_cache_num_hits_per_model")
        misses = metric(asking, "nv_cache_num_misses_per_model")

    assert stats["inference_count"] == 4
    assert stats["execution_count"] == 2
    assert stats["inference_stats"]["success"]["count"] == 4
    assert stats["inference_stats"]["cache_hit"]["count"] == 2
    assert stats["inference_stats"]["cache_miss"]["count"] == 2
    assert (hits, misses) == (2, 2)
