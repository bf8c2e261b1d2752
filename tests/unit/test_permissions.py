"""The table of permissions: it covers what agent and controller use, and nothing of anybody else."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.broker.permissions import TABLE, Access, Role, allows, covers, filters
from muster_controller.client_names import controller_name
from muster_shared import topics
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.topics import (
    Channel,
    ChunkTopic,
    ControllerTopic,
    DeviceTopic,
    Topic,
    TrustTopic,
    WantTopic,
    build,
    chunk_filter,
    controller_filters,
    device_filters,
)

FLEET = FleetId("plant")
OWN, OTHER = DeviceId("d1"), DeviceId("d10")
CONTROLLER = controller_name(FLEET)
DIGEST = Sha256("a" * 64)

# Who sends what, as the head of topics.py draws it.
FROM_DEVICE: list[Topic] = [DeviceTopic(OWN, one) for one in (Channel.TWIN, Channel.PRESENCE, Channel.EVENT)]
FROM_DEVICE.append(WantTopic(DIGEST))
FROM_CONTROLLER: list[Topic] = [
    DeviceTopic(OWN, Channel.ASSIGNMENT),
    DeviceTopic(OWN, Channel.ACK),
    ControllerTopic(),
    TrustTopic("snapshot"),
    ChunkTopic(DIGEST, 7),
]
words = st.sampled_from(
    ["muster", "v1", "plant", "device", "d1", "d10", "twin", "ack", "trust", "+", "#", "$share", ""]
)


def test_every_topic_of_the_protocol_has_a_sender_in_the_table() -> None:
    kinds = {type(topic) for topic in FROM_DEVICE + FROM_CONTROLLER}
    channels = {topic.channel for topic in FROM_DEVICE + FROM_CONTROLLER if isinstance(topic, DeviceTopic)}

    assert kinds == set(get_args(Topic)), "a new topic needs a row in the table, and in this test"
    assert channels == set(Channel)


@pytest.mark.parametrize("topic", FROM_DEVICE, ids=str)
def test_a_device_publishes_it_and_the_controller_receives_it_and_not_the_other_way_round(topic: Topic) -> None:
    text = build(FLEET, topic)

    assert allows(OWN, Access.PUBLISH, text, FLEET)
    assert allows(CONTROLLER, Access.SUBSCRIBE, text, FLEET)
    assert not allows(OWN, Access.SUBSCRIBE, text, FLEET)
    assert not allows(CONTROLLER, Access.PUBLISH, text, FLEET)


@pytest.mark.parametrize("topic", FROM_CONTROLLER, ids=str)
def test_the_controller_publishes_it_and_the_device_receives_it_and_not_the_other_way_round(topic: Topic) -> None:
    text = build(FLEET, topic)

    assert allows(CONTROLLER, Access.PUBLISH, text, FLEET)
    assert allows(OWN, Access.SUBSCRIBE, text, FLEET)
    assert not allows(CONTROLLER, Access.SUBSCRIBE, text, FLEET)
    assert not allows(OWN, Access.PUBLISH, text, FLEET)


def test_the_subscriptions_that_agent_and_controller_make_are_covered_whole() -> None:
    of_device = [*device_filters(FLEET, OWN), chunk_filter(FLEET, DIGEST)]

    assert all(allows(OWN, Access.SUBSCRIBE, one, FLEET) for one in of_device)
    assert all(allows(CONTROLLER, Access.SUBSCRIBE, one, FLEET) for one in controller_filters(FLEET))


def test_a_row_that_nobody_uses_is_not_there() -> None:
    used = [build(FLEET, topic) for topic in FROM_DEVICE + FROM_CONTROLLER] + [f"{topics.ROOT}/{FLEET}/metrics/c1"]

    for role in Role:
        for access in Access:
            for one in filters(role, access, FLEET, OWN):
                assert any(covers(one, topic) for topic in used), f"{role} {access} {one}"


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("channel", Channel)
def test_nothing_of_another_device_is_allowed(access: Access, channel: Channel) -> None:
    assert not allows(OWN, access, build(FLEET, DeviceTopic(OTHER, channel)), FLEET)


@pytest.mark.parametrize(
    "asked",
    [
        "#",
        "+/#",
        "muster/#",
        "muster/v1/plant/#",
        "muster/v1/plant/device/+/assignment",
        "muster/v1/plant/device/d1/#",
        "muster/v1/plant/device/d1/+",
        "muster/v1/+/trust/+",
        "muster/v1/other/trust/root",
        "$share/group/muster/v1/plant/trust/+",
        "$share/group/muster/v1/plant/device/d1/assignment",
        "$SYS/#",
    ],
)
def test_a_filter_that_reaches_further_than_the_table_is_refused(asked: str) -> None:
    assert not allows(OWN, Access.SUBSCRIBE, asked, FLEET)


def test_another_fleet_is_nobody() -> None:
    stranger = controller_name(FleetId("other"))

    assert not allows(stranger, Access.PUBLISH, build(FLEET, DeviceTopic(OWN, Channel.ASSIGNMENT)), FLEET)


def test_no_row_has_a_wildcard_of_many_levels() -> None:
    rows = [one for of_role in TABLE.values() for of_access in of_role.values() for one in of_access]

    assert not any("#" in one for one in rows)
    assert all(one.count("/") <= 7 for one in rows)


@given(st.lists(words, min_size=1, max_size=7), st.lists(words, min_size=1, max_size=7))
def test_what_is_covered_by_something_covered_is_covered(left: list[str], right: list[str]) -> None:
    asked, granted = "/".join(left), "/".join(right)

    assert covers(asked, asked) or "#" in left or "$share" in left
    for one in filters(Role.DEVICE, Access.SUBSCRIBE, FLEET, OWN):
        if covers(one, granted) and covers(granted, asked):
            assert covers(one, asked)
