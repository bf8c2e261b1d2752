"""One broker for all attacks, each with a fleet of its own on it; attacks strike while the tests before them wait.

Most of an attack's time is patience: an agent reports what may only be out of order after five seconds.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from attack.attacks import Attempt, Strike
from attack.stage import Stage, open_stage
from harness.fleet_of_one import own_broker
from muster_controller.broker.embedded import EmbeddedBroker

AHEAD = 4
Struck = tuple[Stage, Attempt]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def next_struck(
    request: pytest.FixtureRequest, broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Struck]]:
    """Return the stage of the next test that is `under` an attack, which has struck there, on an agent as it ships."""
    folder = tmp_path_factory.mktemp("stages")
    found = [getattr(getattr(item, "function", None), "strike", None) for item in request.session.items]
    strikes = enumerate(strike for strike in found if strike is not None)
    waiting: deque[Future[Struck]] = deque()
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="attack") as strikers:

        def begin_one_more() -> None:
            for number, strike in strikes:
                waiting.append(strikers.submit(strike_on, folder / str(number), broker, strike))
                return

        def take() -> Struck:
            begin_one_more()
            return waiting.popleft().result()

        for _ in range(AHEAD):
            begin_one_more()
        yield take
        for left in waiting:  # Its test was not run after all.
            if not left.cancel() and left.exception() is None:
                left.result()[0].close()


@pytest.fixture
def struck(next_struck: Callable[[], Struck]) -> Iterator[Struck]:
    stage, attempt = next_struck()
    yield stage, attempt
    stage.close()


def strike_on(folder: Path, broker: EmbeddedBroker, strike: Strike) -> Struck:
    stage = open_stage(folder, broker)
    try:
        return stage, strike(stage)
    except BaseException:
        stage.close()
        raise
