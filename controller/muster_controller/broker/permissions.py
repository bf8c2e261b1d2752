"""Who may publish and subscribe to what: one table, from which the configuration of every broker is written.

    role        is the certificate         publishes                          receives
    device      CN=<device>, O=<fleet>     device/<own>/twin|presence|event   device/<own>/assignment|ack
                                           release/+/want  metrics/+          controller  trust/+  release/+/chunk/+
    controller  CN=controller.<fleet>      the right column, of every device  twin, presence, event, want

The will counts as published. Nobody else has any right, and what is not in the table is denied. The unit tests hold it
against the topics that agent and controller use. Pure; how a broker is told is in `mosquitto`, `nats` and `emqx`.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import zip_longest
from typing import Final

from muster_controller.client_names import controller_name
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.topics import (
    ROOT,
    Channel,
    ControllerTopic,
    DeviceTopic,
    Topic,
    TrustTopic,
    WantTopic,
    build,
    chunk_filter,
)

# What stands for a name in the table. Neither can be an id, so replacing one never meets the other.
_FLEET = FleetId("{fleet}")
_OWN = DeviceId("{device}")
_ANY = DeviceId("+")


class Role(StrEnum):
    """What somebody is, by the name in the certificate."""

    DEVICE = "device"
    CONTROLLER = "controller"


class Access(StrEnum):
    """What is done with a topic; a subscription is a right to receive, retained messages included."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


def _topics(*topics: Topic) -> tuple[str, ...]:
    return tuple(build(_FLEET, topic) for topic in topics)


_WANT = _topics(WantTopic(Sha256("+")))
_BROADCAST = (*_topics(ControllerTopic(), TrustTopic("+")), chunk_filter(_FLEET, Sha256("+")))
_UP = (Channel.TWIN, Channel.PRESENCE, Channel.EVENT)
_DOWN = (Channel.ASSIGNMENT, Channel.ACK)

TABLE: Final[Mapping[Role, Mapping[Access, tuple[str, ...]]]] = {
    Role.DEVICE: {
        Access.PUBLISH: (
            *_topics(*(DeviceTopic(_OWN, channel) for channel in _UP)),
            *_WANT,
            f"{ROOT}/{_FLEET}/metrics/+",  # Anonymous: the broker knows who sends, but the topic does not say it.
        ),
        Access.SUBSCRIBE: (*_topics(*(DeviceTopic(_OWN, channel) for channel in _DOWN)), *_BROADCAST),
    },
    Role.CONTROLLER: {
        Access.PUBLISH: (*_topics(*(DeviceTopic(_ANY, channel) for channel in _DOWN)), *_BROADCAST),
        Access.SUBSCRIBE: (*_topics(*(DeviceTopic(_ANY, channel) for channel in _UP)), *_WANT),
    },
}
"""MQTT filters with `{fleet}` and `{device}`, the latter being the name in the certificate."""


def filters(role: Role, access: Access, fleet: FleetId, device: str = "") -> tuple[str, ...]:
    """Return the filters of `role` in `fleet`.

    Args:
        device: a device id, or what a broker's own language writes for the name in the certificate (`%u`).
    """
    return tuple(
        one.replace(_FLEET, fleet).replace(_OWN, device) if role is Role.DEVICE else one.replace(_FLEET, fleet)
        for one in TABLE[role][access]
    )


def role_of(name: str, fleet: FleetId) -> Role:
    """Return what the common name of a certificate of `fleet` makes of its owner."""
    return Role.CONTROLLER if name == controller_name(fleet) else Role.DEVICE


def allows(name: str, access: Access, topic: str, fleet: FleetId) -> bool:
    """Whether the owner of a certificate of `fleet` with common name `name` may do that to a topic or a filter."""
    return any(covers(one, topic) for one in filters(role_of(name, fleet), access, fleet, name))


def covers(granted: str, asked: str) -> bool:
    """Whether every topic that the filter `asked` matches is also matched by `granted` (MQTT 5, 4.7)."""
    if asked.startswith("$") != granted.startswith("$"):
        return False  # Wildcards at the front do not match topics that begin with $; shared subscriptions are nobody's.
    for mine, theirs in zip_longest(granted.split("/"), asked.split("/")):
        if mine == "#":
            return True
        if mine is None or theirs is None or theirs == "#" or (mine != "+" and mine != theirs):
            return False
    return True
