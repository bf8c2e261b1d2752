"""The table of permissions: it covers what agent, controller and mixer use, and nothing of anybody else."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.broker.permissions import TABLE, Access, Role, allows, covers, denied, filters
from muster_controller.client_names import controller_name, mixer_name, mixer_of
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.topics import (
    Channel,
    ChunkTopic,
    ControllerTopic,
    DeviceTopic,
    MetricsTopic,
    MixedChannel,
    MixedTopic,
    Topic,
    TrustTopic,
    WantTopic,
    build,
    chunk_filter,
    controller_filters,
    device_filters,
    mixer_filters,
)

FLEET = FleetId("plant")
OWN, OTHER = DeviceId("d1"), DeviceId("d10")
CONTROLLER = controller_name(FLEET)
MIXER, OTHER_MIXER = mixer_name(FLEET, "m1"), mixer_name(FLEET, "m10")
DIGEST = Sha256("a" * 64)

# Who sends what, as the head of topics.py draws it.
SAID = (Channel.TWIN, Channel.PRESENCE, Channel.EVENT, Channel.ANSWER)
FROM_DEVICE: list[Topic] = [*(DeviceTopic(OWN, each) for each in SAID), WantTopic(DIGEST)]
FROM_CONTROLLER: list[Topic] = [
    DeviceTopic(OWN, Channel.ASSIGNMENT),
    DeviceTopic(OWN, Channel.ACK),
    DeviceTopic(OWN, Channel.CALL),
    ControllerTopic(),
    TrustTopic("snapshot"),
    ChunkTopic(DIGEST, 7),
]
WINDOWS = [MetricsTopic(0), MetricsTopic(15)]
FROM_MIXER = [MixedTopic("m1", MixedChannel.SUMS), MixedTopic("m1", MixedChannel.STATE)]
TO_MIXER = [MixedTopic("m1", MixedChannel.ACK)]
EVERYTHING: list[Topic] = [*FROM_DEVICE, *FROM_CONTROLLER, *WINDOWS, *FROM_MIXER, *TO_MIXER]
words = st.sampled_from(
    ["muster", "v1", "plant", "device", "d1", "d10", "twin", "ack", "trust", "+", "#", "$share", ""]
)


def test_every_topic_of_the_protocol_has_a_sender_in_the_table() -> None:
    kinds = {type(topic) for topic in EVERYTHING}
    channels = {topic.channel for topic in EVERYTHING if isinstance(topic, DeviceTopic)}
    of_mixers = {topic.channel for topic in EVERYTHING if isinstance(topic, MixedTopic)}

    assert kinds == set(get_args(Topic)), "a new topic needs a row in the table, and in this test"
    assert channels == set(Channel)
    assert of_mixers == set(MixedChannel)


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


@pytest.mark.parametrize("topic", WINDOWS, ids=str)
def test_what_devices_measure_reaches_mixers_and_the_controller_has_no_right_to_it(topic: Topic) -> None:
    text = build(FLEET, topic)

    assert allows(OWN, Access.PUBLISH, text, FLEET)
    assert allows(MIXER, Access.SUBSCRIBE, text, FLEET)
    assert not allows(OWN, Access.SUBSCRIBE, text, FLEET)
    assert not allows(MIXER, Access.PUBLISH, text, FLEET)
    assert not any(allows(CONTROLLER, access, text, FLEET) for access in Access)


@pytest.mark.parametrize("topic", [*FROM_MIXER, *TO_MIXER], ids=str)
def test_what_is_between_a_mixer_and_the_controller_is_theirs_alone(topic: MixedTopic) -> None:
    text, is_up = build(FLEET, topic), topic in FROM_MIXER
    sends, hears = (MIXER, CONTROLLER) if is_up else (CONTROLLER, MIXER)

    assert allows(sends, Access.PUBLISH, text, FLEET)
    assert allows(hears, Access.SUBSCRIBE, text, FLEET)
    assert not allows(hears, Access.PUBLISH, text, FLEET)
    assert not allows(sends, Access.SUBSCRIBE, text, FLEET)
    for access in Access:
        assert not allows(OTHER_MIXER, access, text, FLEET)
        assert not allows(OWN, access, text, FLEET)


@pytest.mark.parametrize("topic", [*FROM_DEVICE, *FROM_CONTROLLER], ids=str)
def test_a_mixer_has_no_part_in_what_is_between_devices_and_controller(topic: Topic) -> None:
    assert not any(allows(MIXER, access, build(FLEET, topic), FLEET) for access in Access)


def test_the_subscriptions_that_agent_controller_and_mixer_make_are_covered_whole() -> None:
    of_device = [*device_filters(FLEET, OWN), chunk_filter(FLEET, DIGEST)]

    assert all(allows(OWN, Access.SUBSCRIBE, one, FLEET) for one in of_device)
    assert all(allows(CONTROLLER, Access.SUBSCRIBE, one, FLEET) for one in controller_filters(FLEET))
    assert set(controller_filters(FLEET)) == set(filters(Role.CONTROLLER, Access.SUBSCRIBE, FLEET))
    for cohorts in (range(16), (3,)):
        assert all(allows(MIXER, Access.SUBSCRIBE, one, FLEET) for one in mixer_filters(FLEET, "m1", cohorts))


def test_a_row_that_nobody_uses_is_not_there() -> None:
    used = [build(FLEET, topic) for topic in EVERYTHING]

    for role in Role:
        for access in Access:
            for one in filters(role, access, FLEET, "m1" if role is Role.MIXER else OWN):
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


@pytest.mark.parametrize("mixer", [MIXER, "mixer.m1", "mixer.m1.plant.aaaaaaaaaaaaaaaa", "mixer..plant", "m1.plant"])
@pytest.mark.parametrize(
    "asked", ["#", "muster/v1/plant/metrics/#", "muster/v1/plant/mixed/+/ack", "muster/v1/+/metrics/3"]
)
def test_a_filter_that_reaches_further_is_refused_to_mixers_and_to_what_only_looks_like_one(
    mixer: str, asked: str
) -> None:
    assert not allows(mixer, Access.SUBSCRIBE, asked, FLEET)


@pytest.mark.parametrize(
    "name", ["mixer.m1", "mixer.m1.plant.aaaaaaaaaaaaaaaa", "mixer..plant", "m1", "mixer.m1.other"]
)
def test_who_only_looks_like_a_mixer_of_the_fleet_receives_no_windows(name: str) -> None:
    assert mixer_of(name, FLEET) is None
    assert not allows(name, Access.SUBSCRIBE, build(FLEET, MetricsTopic(3)), FLEET)


def test_a_mixer_whose_name_does_not_fit_into_a_certificate_is_refused() -> None:
    long = FleetId("f" * 53)

    assert mixer_of(mixer_name(long, "m123"), long) == "m123"
    with pytest.raises(WireError, match="4 characters"):
        mixer_name(long, "m1234")
    with pytest.raises(WireError):
        mixer_name(FLEET, "m.1")


def test_what_is_denied_to_controller_and_mixers_by_name_is_nothing_that_they_need() -> None:
    for role in (Role.CONTROLLER, Role.MIXER):
        for one in denied(role, FLEET):
            assert not any(covers(one, mine) for access in Access for mine in filters(role, access, FLEET, "m1"))
    assert f"muster/v1/{FLEET}/metrics/+" in denied(Role.CONTROLLER, FLEET)


def test_another_fleet_is_nobody() -> None:
    stranger = controller_name(FleetId("other"))

    assert not allows(mixer_name(FleetId("other"), "m1"), Access.SUBSCRIBE, build(FLEET, MetricsTopic(0)), FLEET)
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
