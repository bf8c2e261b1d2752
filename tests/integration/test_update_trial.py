"""A rollout that wants a trial, on a real agent process: the candidate sees live inputs before it answers anybody."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from harness.asking import Program
from harness.fleet_of_one import MODEL, Agent, Fleet, Works, doubling_fleet, own_broker, wait_until
from muster_controller.broker.embedded import EmbeddedBroker
from muster_shared.assignment import Activation, Trial, Watch
from muster_shared.ids import FleetId, RolloutId
from muster_shared.messages import OutcomeReported, Refusal, Step, StepReached

pytestmark = pytest.mark.broker
OLD, NEW = "1.0.0", "2.0.0"
TRIAL = Trial(share=1.0, requests_min=30, seconds_max=20.0, latency_ratio_max=100.0)
"""Whoever else is busy on this machine makes no candidate look slow."""


def watch(trial: Trial) -> Watch:
    return Watch(
        rollout=RolloutId("r1"),
        wave=1,
        window_s=1.0,
        window_max_s=2.0,
        requests_min=5,
        deadline_s=300.0,
        activation=Activation(trial=trial),
    )


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works.open(tmp_path / "works")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with own_broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def fleet(works: Works, broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Fleet]:
    with doubling_fleet(works, broker, FleetId("tried"), tmp_path / "device") as fleet:
        fleet.answer()
        yield fleet


@contextmanager
def traffic(fleet: Fleet) -> Iterator[Counter[tuple[int, str]]]:
    """Ask without a pause; yields the answers so far, by status and version."""
    seen: Counter[tuple[int, str]] = Counter()
    ending = threading.Event()

    def ask() -> None:
        asking = Program(fleet.agent.port)
        while not ending.is_set():
            answer = asking.infer((1.0, 2.0), model=MODEL)
            seen[answer.status, answer.version if answer.status == 200 else ""] += 1
        asking.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait_until(lambda: seen[200, OLD] > 20)
        yield seen
    finally:
        ending.set()
        thread.join(10)


def outcome(fleet: Fleet) -> OutcomeReported:
    def found() -> OutcomeReported | None:
        bodies = [event.body for event in list(fleet.events.values())]
        return next((body for body in bodies if isinstance(body, OutcomeReported)), None)

    return wait_until(found)


def test_a_candidate_that_agrees_takes_over_without_a_lost_request(works: Works, fleet: Fleet) -> None:
    candidate = works.release(NEW, factor=3.0)  # The larger number stays the larger one: the classes agree.

    with traffic(fleet) as seen:
        fleet.assign(2, candidate, watch=watch(TRIAL))
        fleet.wait_for_step(candidate, Step.TRYING)
        switched = fleet.wait_for_step(candidate, Step.SWITCHED)
        told = outcome(fleet)

    assert told.good, told.reason
    assert told.window is not None
    assert told.window.compared >= 30
    assert told.window.disagreed == 0
    assert told.window.trial_latency_ms_p95 is not None
    assert told.window.latency_ms_p95_before is not None
    assert "live inputs" in switched.detail
    assert set(seen) == {(200, OLD), (200, NEW)}
    # Neither warming up, nor the trial, but for what was under way, is part of the window.
    assert 5 <= told.window.requests <= seen[200, NEW] + 2
    assert fleet.answer() == [3.0, 6.0]


def test_a_candidate_that_disagrees_answers_nobody_and_its_figures_are_told(works: Works, fleet: Fleet) -> None:
    candidate = works.release(NEW, factor=-3.0)

    with traffic(fleet) as seen:
        fleet.assign(2, candidate, watch=watch(TRIAL))
        failure = fleet.wait_for_failure(candidate)
        told = outcome(fleet)

    assert failure.refusal is Refusal.TRIAL_FAILED
    assert not told.good
    assert told.window is not None
    assert told.window.disagreed == told.window.compared >= 30
    assert set(seen) == {(200, OLD)}
    asking = Program(fleet.agent.port)
    wait_until(lambda: asking.ask("GET", f"/v1/models/{MODEL}/trial").status == 404)
    asking.close()


@pytest.mark.parametrize(
    ("required", "reached"), [(True, Step.FAILED), (False, Step.SWITCHED)], ids=["required", "not required"]
)
def test_without_live_inputs_a_trial_ends_in_time(works: Works, fleet: Fleet, required: bool, reached: Step) -> None:
    candidate = works.release(NEW, factor=3.0)

    fleet.assign(2, candidate, watch=watch(replace(TRIAL, seconds_max=1.5, required=required)))
    step: StepReached = fleet.wait_for_step(candidate, reached)

    assert "0 live inputs" in step.detail
    assert fleet.answer() == ([2.0, 4.0] if required else [3.0, 6.0])


def test_a_trial_outlives_the_agent_and_whoever_ends_it_by_hand(
    works: Works, fleet: Fleet, broker: EmbeddedBroker
) -> None:
    candidate = works.release(NEW, factor=3.0)
    fleet.assign(2, candidate, watch=watch(replace(TRIAL, seconds_max=120.0)))
    fleet.wait_for_step(candidate, Step.TRYING)

    fleet.agent.kill()
    fleet.agent = Agent.start(fleet.agent.folder, broker_url=broker.url)
    fleet.answer()
    asking = Program(fleet.agent.port)
    trial = f"/v1/models/{MODEL}/trial"
    wait_until(_is_on(asking, trial))
    asking.ask("DELETE", trial)
    wait_until(_is_on(asking, trial))
    asking.close()
    with traffic(fleet):
        fleet.wait_for_step(candidate, Step.COMMITTED)

    assert fleet.answer() == [3.0, 6.0]


def _is_on(asking: Program, path: str) -> Callable[[], bool]:
    return lambda: asking.ask("GET", path).status == 200
