"""What exceeds a queue goes to the endpoint that the operator named, or is refused as without one; both are real."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from harness.asking import Answer, Program, Scripted, plus, program, scripted, serving
from harness.endpoint import THREADS, WAIT_S, until
from harness.fleet_of_one import free_port
from muster_agent.serving.config import Limit, ServingConfig, UpstreamConfig

HERE, THERE = "1.0.1", "1.0.2"


@contextmanager
def full(upstream: str | None) -> Iterator[Program]:
    """An endpoint whose engine is busy and whose queue is full; what fills it is answered by itself in the end."""
    engine = Scripted(plus(1), shut=True)
    config = ServingConfig(queue_max=1, upstream=None if upstream is None else UpstreamConfig(url=upstream))
    with (
        serving(scripted(engine, 1, plan=THREADS), config=config) as endpoint,
        program(endpoint) as asking,
        ThreadPoolExecutor(2) as programs,
    ):

        def ask() -> Answer:
            with program(endpoint) as another:
                return another.infer()

        try:
            running = programs.submit(ask)
            assert engine.began.acquire(timeout=WAIT_S)
            waiting = programs.submit(ask)
            until(lambda: endpoint.on_loop(lambda: endpoint.table.place("sums").room.queued) == 1)
            yield asking
        finally:
            engine.gate.set()
        assert [future.result().data for future in (running, waiting)] == [[2, 3, 4]] * 2


def test_what_exceeds_the_queue_is_answered_upstream_and_marked() -> None:
    with (
        serving(scripted(Scripted(plus(2)), 2)) as upstream,
        full(f"http://{upstream.url}") as asking,
    ):
        answer = asking.infer()
        page = asking.ask("GET", "/metrics").body.decode()

    assert answer.data == [3, 4, 5]
    assert answer.version == THERE
    assert answer.headers["muster-spilled"] == upstream.url
    assert f'muster_spilled_total{{upstream="{upstream.url}"}} 1' in page


def test_what_the_device_answers_itself_is_not_marked() -> None:
    config = ServingConfig(upstream=UpstreamConfig(url=f"http://127.0.0.1:{free_port()}"))

    with serving(scripted(Scripted(plus(1))), config=config) as endpoint, program(endpoint) as asking:
        answer = asking.infer()

    assert answer.version == HERE
    assert "muster-spilled" not in answer.headers


def test_binary_answers_come_through_unchanged() -> None:
    header = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}],' \
        b'"parameters":{"binary_data_output":true}}'  # fmt: skip
    body = header + bytes(12)
    with serving(scripted(Scripted(plus(2)), 2)) as upstream, full(f"http://{upstream.url}") as asking:
        answer = asking.ask("POST", "/v2/models/sums/infer", body, Inference_Header_Content_Length=str(len(header)))

    head = int(answer.headers["inference-header-content-length"])
    assert answer.status == 200
    assert answer.body[head:] == b"\0\0\0\x40" * 3


def test_without_an_upstream_it_is_told_to_come_again() -> None:
    with full(None) as asking:
        answer = asking.infer()

    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1


def test_an_upstream_that_is_down_changes_nothing() -> None:
    with full(f"http://127.0.0.1:{free_port()}") as asking:
        answer = asking.infer()
        page = asking.ask("GET", "/metrics").body.decode()

    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "muster_spill_failed_total" in page
    assert "} 1\n" in page[page.index("muster_spill_failed_total{") :]


def test_an_upstream_that_refuses_leaves_the_refusal_here() -> None:
    config = ServingConfig(anonymous=Limit(rows_per_s=0.001, burst=1))
    with serving(scripted(Scripted(plus(2)), 2), config=config) as upstream, full(f"http://{upstream.url}") as asking:
        first, second = asking.infer(), asking.infer()

    assert first.version == THERE
    assert second.status == 429


def test_what_was_spilled_to_this_device_goes_no_further() -> None:
    elsewhere = Scripted(plus(2))
    with serving(scripted(elsewhere, 2)) as upstream, full(f"http://{upstream.url}") as asking:
        answer = asking.infer(Muster_Spilled="1")

    assert answer.status == 429
    assert elsewhere.calls == 0


def test_what_the_queue_takes_stays_here() -> None:
    with serving(scripted(Scripted(plus(2)), 2)) as upstream:
        config = ServingConfig(upstream=UpstreamConfig(url=f"http://{upstream.url}"), queue_max=64)
        with serving(scripted(Scripted(plus(1))), config=config) as endpoint, ThreadPoolExecutor(8) as programs:

            def ask(_: int) -> str:
                with program(endpoint) as another:
                    return another.infer().version

            versions = set(programs.map(ask, range(40)))

    assert versions == {HERE}
