"""Each attack once more, on an agent whose defence is off: there it must succeed, or its test would prove nothing."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from attack.attacks import ATTACKS
from attack.defences import DEFENCES
from attack.stage import open_stage
from muster_controller.broker.embedded import EmbeddedBroker

pytestmark = pytest.mark.broker
TOGETHER = 4
"""They wait more than they work, and nobody measures them."""


@pytest.mark.parametrize("attack", DEFENCES)
def test_attack_is_noticed_without_its_defence(attack: str, struck: Mapping[str, Future[None]]) -> None:
    struck[attack].result()


def test_attacks_all_have_a_defence_that_can_be_switched_off() -> None:
    assert ATTACKS.keys() == DEFENCES.keys()


@pytest.fixture(scope="module")
def struck(
    request: pytest.FixtureRequest, broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[None]]]:
    """Every attack that was selected, under way."""
    folder = tmp_path_factory.mktemp("undefended")
    callspecs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    chosen = [callspec.params["attack"] for callspec in callspecs if callspec is not None]
    with ThreadPoolExecutor(TOGETHER, thread_name_prefix="attack") as strikers:
        yield {attack: strikers.submit(succeed, attack, folder / attack, broker) for attack in chosen}
        strikers.shutdown(cancel_futures=True)


def succeed(attack: str, folder: Path, broker: EmbeddedBroker) -> None:
    """Return when the attack has reached its goal. Raises TimeoutError when it does not."""
    stage = open_stage(folder, broker, without=attack)
    try:
        attempt = ATTACKS[attack](stage)

        stage.wait(attempt.reached)
    finally:
        stage.close()
