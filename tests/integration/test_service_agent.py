"""Loading, unloading and trying releases on a real agent process: what local programs may ask of it over HTTP."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from harness.asking import Answer, Program
from harness.collector import Collector
from harness.digits_agent import bundle
from harness.fleet_of_one import DEVICE, MODEL, Agent, Fleet, Works, doubling_fleet, free_port, own_broker, wait_until
from muster_agent.core.split import Mode
from muster_controller.broker.embedded import EmbeddedBroker
from muster_shared.assignment import Assignment, ModelAssignment
from muster_shared.ids import FleetId
from muster_shared.messages import ReleaseRef, Step
from muster_shared.topics import Channel, DeviceTopic
from muster_simulator.workloads import digits

pytestmark = pytest.mark.broker
OLD, NEW = "1.0.0", "2.0.0"


@pytest.fixture
def works(tmp_path: Path) -> Works:
    return Works.open(tmp_path / "works", [MODEL, digits.MODEL])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    with own_broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def fleet(works: Works, broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Fleet]:
    with doubling_fleet(works, broker, FleetId("asked"), tmp_path / "device") as fleet:
        yield fleet


@pytest.fixture
def asking(fleet: Fleet) -> Iterator[Program]:
    made = Program(fleet.agent.port)
    yield made
    made.close()


def ask(asking: Program, key: str = "") -> Answer:
    return asking.infer((1.0, 2.0), model=MODEL, Muster_Request_Key=key)


def test_an_unloaded_model_is_loaded_again_when_somebody_asks(asking: Program) -> None:
    before = ask(asking)
    unloaded = asking.ask("POST", f"/v2/repository/models/{MODEL}/unload", {})
    index = asking.ask("POST", "/v2/repository/index").json
    ready = asking.ask("GET", f"/v2/models/{MODEL}/ready").status
    first = ask(asking)
    after = wait_until(lambda: answer if (answer := ask(asking)).status == 200 else None)

    assert before.data == after.data == [2, 4]
    assert unloaded.status == 200
    assert index == [{"name": MODEL, "version": OLD, "state": "UNAVAILABLE", "reason": "unloaded"}]
    assert ready == 404
    assert first.status == 503
    assert int(first.headers["retry-after"]) >= 1
    assert asking.ask("POST", "/v2/repository/index").json[0]["state"] == "READY"


def test_a_model_can_be_loaded_again_by_request(asking: Program) -> None:
    asking.ask("POST", f"/v2/repository/models/{MODEL}/unload", {})

    loaded = asking.ask("POST", f"/v2/repository/models/{MODEL}/load", {})
    wait_until(lambda: asking.ask("GET", f"/v2/models/{MODEL}/ready").status == 200)

    assert loaded.status == 200
    assert ask(asking).data == [2, 4]


def test_what_is_no_release_on_this_device_cannot_be_loaded(asking: Program) -> None:
    for act in ("load", "unload"):
        answer = asking.ask("POST", f"/v2/repository/models/anything/{act}", {})

        assert answer.status == 404
    assert ask(asking).status == 200


def test_models_beyond_the_memory_budget_take_turns(
    works: Works, broker: EmbeddedBroker, fleet: Fleet, tmp_path: Path
) -> None:
    restart(fleet, broker, "[serving]\nmemory_budget_mb = 1\n")
    scale = works.release(NEW, factor=3.0, weight_chunks=2048)  # Two megabytes: alone more than the budget.
    other = works.publish(bundle("1.0.0", tmp_path / "bundles"))
    assign(fleet, 2, [scale, other])
    for release in (scale, other):
        fleet.wait_for_step(release, Step.SWITCHED)
    asking = Program(fleet.agent.port)

    for _ in range(2):
        answer = wait_until(lambda: answer if (answer := ask(asking)).status == 200 else None)
        assert answer.data == [3, 6]
        assert ready(asking) == {MODEL}
        wait_until(lambda: asking.infer([0.0], model=digits.MODEL).status == 400)  # It serves, and takes other shapes.
        assert ready(asking) == {digits.MODEL}

    asking.close()


@pytest.mark.parametrize("mode", Mode)
def test_the_release_in_standby_can_be_tried(works: Works, fleet: Fleet, asking: Program, mode: Mode) -> None:
    path = f"/v1/models/{MODEL}/trial"
    release = works.release(NEW, factor=3.0)
    alone = asking.ask("POST", path, {"mode": mode.value})
    fleet.assign(2, release)
    fleet.wait_for_step(release, Step.COMMITTED)

    begun = asking.ask("POST", path, {"mode": mode.value, "share": 1.0})
    assert begun.status == 200, begun.body
    answers = [ask(asking, f"camera-{at}") for at in range(3)]
    trial = wait_until(lambda: found if (found := asking.ask("GET", path).json)["candidate_latency"]["count"] else None)
    ended = asking.ask("DELETE", path)
    after = ask(asking, "camera-0")
    gone = asking.ask("GET", path)

    assert alone.status == 404
    assert "second release" in alone.error
    assert trial["candidate"] == OLD
    if mode is Mode.CANARY:
        assert [(answer.version, answer.data) for answer in answers] == [(OLD, [2, 4])] * 3
    else:
        assert [(answer.version, answer.data) for answer in answers] == [(NEW, [3, 6])] * 3
        assert (trial["errors"], trial["worst_abs"]) == (0, 2.0)  # 6 is not 4, though the larger one is the same.
    assert (ended.status, gone.status) == (200, 404)
    assert (after.version, after.data) == (NEW, [3, 6])


def test_a_trial_that_is_none_is_refused(asking: Program) -> None:
    path = f"/v1/models/{MODEL}/trial"

    refused = [
        asking.ask("POST", path, wish).status for wish in ({"mode": "both"}, {"mode": "canary", "share": 1.5}, {}, b"?")
    ]

    assert refused == [400] * 4
    assert asking.ask("PUT", path, {}).status == 405


def test_what_the_operator_configures_is_what_the_agent_does(fleet: Fleet, broker: EmbeddedBroker) -> None:
    token = "inspection-token"
    collector = Collector()
    restart(
        fleet,
        broker,
        f"""
        [serving]
        require_token = true
        slow_request_ms = 0.001
        [serving.queue_timeout_ms]
        later = 50
        [[serving.clients]]
        name = "inspection"
        token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"
        rows_per_s = 0.01
        burst = 3
        [serving.upstream]
        url = "http://127.0.0.1:{free_port()}"
        [serving.tracing]
        endpoint = "{collector.endpoint}"
        root_share = 1.0
        [serving.models.scale]
        pinned = true
        """,
    )
    asking = Program(fleet.agent.port)
    bearer = f"Bearer {token}"

    without = ask(asking)
    answered = [asking.infer((1.0, 2.0), model=MODEL, Authorization=bearer) for _ in range(3)]
    beyond = asking.infer((1.0, 2.0), model=MODEL, Authorization=bearer)
    asking.close()
    fleet.agent.stop()
    collector.close()

    assert without.status == 401
    assert [answer.data for answer in answered] == [[2, 4]] * 3
    assert beyond.status == 429
    assert [span.name for span in collector.spans].count(f"infer {MODEL}") == 3
    assert (fleet.agent.folder / "agent.log").read_text().count("request_slow") == 3
    assert fleet.agent.process.returncode == 0


def restart(fleet: Fleet, broker: EmbeddedBroker, configuration: str) -> None:
    """Start the agent again with more in its configuration."""
    fleet.agent.stop()
    with (fleet.agent.folder / "agent.toml").open("a") as file:
        file.write(dedent(configuration))
    fleet.agent = Agent.start(fleet.agent.folder, broker_url=broker.url)
    wait_until(lambda: is_ready(fleet.agent.port))


def is_ready(port: int) -> bool:
    asking = Program(port)
    try:
        return asking.ask("GET", "/v2/health/ready").status == 200
    except OSError:
        return False
    finally:
        asking.close()


def assign(fleet: Fleet, counter: int, releases: Sequence[ReleaseRef]) -> None:
    """Assign several models at once."""
    fleet.publish_trust(fleet.works.repository.trust_messages())
    assignment = Assignment(
        fleet=fleet.fleet,
        device=DEVICE,
        counter=counter,
        issued_at=time.time(),
        expires_at=time.time() + 3600,
        models=tuple(ModelAssignment(release=release) for release in releases),
    )
    raw = fleet.works.repository.sign_assignment(assignment)
    fleet.publish(DeviceTopic(DEVICE, Channel.ASSIGNMENT), raw, retain=True)


def ready(asking: Program) -> set[str]:
    return {row["name"] for row in asking.ask("POST", "/v2/repository/index").json if row["state"] == "READY"}
