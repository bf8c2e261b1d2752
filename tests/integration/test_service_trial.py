"""A candidate beside the release that serves, over HTTP: a canary answers its share, a shadow answers nobody."""

import random
from collections.abc import Callable, Iterator

import pytest

from harness.asking import Answer, Program, Scripted, guests, plus, program, scripted, serving
from harness.endpoint import INLINE, MODEL, THREADS, WAIT_S, Endpoint, until
from muster_agent.core.plan import ServingPlan
from muster_agent.core.split import Mode
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.trial import TrialSnapshot
from muster_shared.ids import Sha256

PLANS = pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])
KEYS = [f"camera-{number}" for number in range(200)]
PRIMARY, CANDIDATE = "1.0.1", "1.0.2"


def never() -> float:
    raise AssertionError("a request with a key needs no chance")


class Setup:
    """An endpoint that serves 1.0.1, which adds 1, and a program that asks it."""

    def __init__(self, endpoint: Endpoint, asking: Program, plan: ServingPlan) -> None:
        self.endpoint = endpoint
        self.asking = asking
        self.plan = plan
        self.ask = asking.infer
        self.candidate = Scripted(plus(2))

    def begin(self, mode: Mode, share: float, draw: Callable[[], float] = never) -> None:
        """Try 1.0.2, which adds 2 unless `candidate` was changed."""
        self.endpoint.table.begin_trial(scripted(self.candidate, 2, plan=self.plan), mode, share, draw)

    def snapshot(self) -> TrialSnapshot:
        return self.endpoint.on_loop(lambda: self.endpoint.table.trials[MODEL].trial.snapshot())


@pytest.fixture(params=[INLINE, THREADS], ids=["inline", "threads"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    primary = scripted(Scripted(plus(1)), 1, plan=request.param)
    with serving(primary) as endpoint, program(endpoint) as asking:
        yield Setup(endpoint, asking, request.param)


def test_the_share_of_a_canary_sticks_to_the_key_of_the_request(setup: Setup) -> None:
    setup.begin(Mode.CANARY, 0.3)

    rounds = [[setup.ask(Muster_Request_Key=key) for key in KEYS] for _ in range(2)]

    versions = [[answer.version for answer in answers] for answers in rounds]
    assert versions[0] == versions[1]
    # A binomial draw of 200 at 0.3 is 60 +- 6.5; the digests are fixed, so this cannot flake.
    assert 40 <= versions[0].count(CANDIDATE) <= 80
    for answer in rounds[0]:
        assert answer.data == ([3, 4, 5] if answer.version == CANDIDATE else [2, 3, 4])
        assert answer.json["parameters"]["version"] == answer.version


def test_requests_without_a_key_are_shared_out_by_chance(setup: Setup) -> None:
    draws = random.Random(5)
    expected = random.Random(5)
    setup.begin(Mode.CANARY, 0.3, draws.random)

    versions = [setup.ask().version for _ in range(100)]

    assert versions == [CANDIDATE if expected.random() < 0.3 else PRIMARY for _ in range(100)]


def test_a_larger_share_keeps_those_who_were_in_the_smaller_one(setup: Setup) -> None:
    setup.begin(Mode.CANARY, 0.2)
    early = {key for key in KEYS if setup.ask(Muster_Request_Key=key).version == CANDIDATE}
    setup.candidate = Scripted(plus(2))
    setup.begin(Mode.CANARY, 0.5)

    late = {key for key in KEYS if setup.ask(Muster_Request_Key=key).version == CANDIDATE}

    assert early < late


def test_either_version_can_be_asked_for_by_name(setup: Setup) -> None:
    setup.begin(Mode.CANARY, 0.0)

    found = [_versioned(setup.asking, version).version for version in (PRIMARY, CANDIDATE)]
    unknown = _versioned(setup.asking, "9.9.9")

    assert found == [PRIMARY, CANDIDATE]
    assert unknown.status == 404


def test_the_failures_of_a_canary_are_counted_and_told(setup: Setup) -> None:
    def fail(x: Array) -> Array:
        raise InferenceFailed("out of memory")

    setup.candidate = Scripted(fail)
    setup.begin(Mode.CANARY, 1.0, lambda: 0.5)

    statuses = [setup.ask().status for _ in range(4)]

    assert statuses == [500] * 4
    assert setup.snapshot().errors == 4


def test_a_shadow_that_agrees_is_counted_and_changes_nothing(setup: Setup) -> None:
    setup.candidate = Scripted(lambda x: plus(1)(x))
    setup.begin(Mode.SHADOW, 1.0, lambda: 0.5)

    answers = _one_by_one(setup, 20)

    assert {answer.version for answer in answers} == {PRIMARY}
    assert all(answer.data == [2, 3, 4] for answer in answers)
    assert setup.candidate.calls == 20
    found = setup.snapshot()
    assert (found.compared, found.disagreed, found.errors, found.skipped) == (20, 0, 0, 0)
    assert found.worst_abs == 0.0


def test_disagreements_are_counted_exactly(setup: Setup) -> None:
    setup.candidate = Scripted(lambda x: x[:, ::-1] if x[0, 0] == 9 else plus(1)(x))
    setup.begin(Mode.SHADOW, 1.0, lambda: 0.5)

    answers = []
    for at in range(30):
        answers.append(setup.ask((9.0 if at % 5 == 0 else 1.0, 2.0, 3.0)))
        until(lambda at=at: setup.snapshot().compared == at + 1)  # type: ignore[misc]

    assert {answer.status for answer in answers} == {200}
    assert {answer.version for answer in answers} == {PRIMARY}
    assert setup.snapshot().disagreed == 6


def test_a_shadow_that_fails_is_nobodys_trouble(setup: Setup) -> None:
    def fail(x: Array) -> Array:
        raise InferenceFailed("out of memory")

    setup.candidate = Scripted(fail)
    setup.begin(Mode.SHADOW, 1.0, lambda: 0.5)

    answers = []
    for at in range(10):
        answers.append(setup.ask())
        until(lambda at=at: setup.snapshot().errors == at + 1)  # type: ignore[misc]

    assert {answer.status for answer in answers} == {200}
    assert all(answer.data == [2, 3, 4] for answer in answers)


def test_a_slow_shadow_holds_up_nobody_and_is_skipped() -> None:
    primary, candidate = Scripted(plus(1)), Scripted(plus(1), shut=True)

    with serving(scripted(primary, 1, plan=INLINE)) as endpoint, program(endpoint) as asking:
        endpoint.table.begin_trial(scripted(candidate, 2), Mode.SHADOW, 1.0, lambda: 0.5)
        first = asking.infer()
        assert candidate.began.acquire(timeout=WAIT_S)  # It is within the candidate's engine now.
        others = [asking.infer() for _ in range(20)]
        held = endpoint.on_loop(lambda: endpoint.table.trials[MODEL].trial.snapshot())
        candidate.gate.set()
        until(lambda: endpoint.on_loop(lambda: endpoint.table.trials[MODEL].trial.snapshot()).compared == 2)

    assert first.data == [2, 3, 4]
    assert all(answer.data == [2, 3, 4] for answer in others)
    assert held.compared == 0
    assert held.skipped == 19  # Two are under way at most.


def test_half_a_shadow_is_asked_half(setup: Setup) -> None:
    draws = iter([0.2, 0.8] * 10)
    setup.begin(Mode.SHADOW, 0.5, draws.__next__)

    for at in range(20):
        setup.ask()
        until(lambda at=at: setup.snapshot().compared == at // 2 + 1)  # type: ignore[misc]

    assert setup.candidate.calls == 10


@pytest.mark.parametrize("mode", Mode)
def test_a_switch_ends_the_trial_and_closes_the_candidate(setup: Setup, mode: Mode) -> None:
    setup.begin(mode, 1.0, lambda: 0.5)
    beside = setup.endpoint.table.trials[MODEL].place
    setup.ask()

    setup.endpoint.table.switch(MODEL, scripted(Scripted(plus(3)), 3, plan=setup.plan))
    after = setup.ask()

    assert after.version == "1.0.3"
    assert not setup.endpoint.table.trials
    assert beside.closed.wait(WAIT_S)
    assert setup.candidate.closed.is_set()
    assert beside._guests == 0


@pytest.mark.parametrize("mode", Mode)
def test_the_end_of_a_trial_gives_everything_back(setup: Setup, mode: Mode) -> None:
    setup.begin(mode, 1.0, lambda: 0.5)
    beside = setup.endpoint.table.trials[MODEL].place
    for _ in range(5):
        setup.ask()

    setup.endpoint.table.end_trial(MODEL)
    after = setup.ask()

    assert after.version == PRIMARY
    assert beside.closed.wait(WAIT_S)
    assert beside._guests == 0
    until(lambda: guests(setup.endpoint) == 0)
    assert setup.asking.ask("GET", f"/v1/models/{MODEL}/trial").status == 404


@pytest.mark.parametrize("mode", Mode)
def test_a_candidate_is_promoted_as_it_is_loaded(setup: Setup, mode: Mode) -> None:
    setup.begin(mode, 1.0, lambda: 0.5)
    table = setup.endpoint.table
    primary, beside = table.place(MODEL), table.trials[MODEL].place
    setup.ask()

    promoted = table.promote(MODEL, beside.served.manifest_sha256)
    after = setup.ask()

    assert promoted
    assert after.version == CANDIDATE
    assert after.data == [3, 4, 5]
    assert table.place(MODEL) is beside
    assert beside.served.slot == "active"
    assert not table.trials
    assert primary.closed.wait(WAIT_S)
    assert not setup.candidate.closed.is_set()


def test_only_the_candidate_on_trial_can_be_promoted(setup: Setup) -> None:
    setup.begin(Mode.SHADOW, 1.0, lambda: 0.5)

    promoted = setup.endpoint.table.promote(MODEL, Sha256("ab" * 32))

    assert not promoted
    assert setup.ask().version == PRIMARY
    assert MODEL in setup.endpoint.table.trials


def test_a_trial_can_be_read(setup: Setup) -> None:
    setup.begin(Mode.CANARY, 0.25)

    trial = setup.asking.ask("GET", f"/v1/models/{MODEL}/trial").json
    page = setup.asking.ask("GET", "/metrics").body.decode()

    assert (trial["mode"], trial["candidate"], trial["share"]) == ("canary", CANDIDATE, 0.25)
    assert f'muster_trial_compared_total{{model="{MODEL}",candidate="{CANDIDATE}",mode="canary"}} 0' in page


def _versioned(asking: Program, version: str) -> Answer:
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    return asking.ask("POST", f"/v2/models/{MODEL}/versions/{version}/infer", {"inputs": [x]})


def _one_by_one(setup: Setup, count: int) -> list[Answer]:
    """Ask, and wait for the shadow each time: it is not skipped."""
    answers = []
    for at in range(count):
        answers.append(setup.ask())
        until(lambda at=at: setup.snapshot().compared == at + 1)  # type: ignore[misc]
    return answers
