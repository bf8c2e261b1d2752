"""Who may publish and subscribe to what: one table, from which the configuration of every broker is written.

    role        is the certificate         publishes                          receives
    device      CN=<device>, O=<fleet>     device/<own>/twin|presence|event   device/<own>/assignment|ack|call
                                           device/<own>/answer                controller  trust/+  release/+/chunk/+
                                           release/+/want  metrics/+
    controller  CN=controller.<fleet>      the right column, of every device  twin, presence, event, answer, want
                                           mixed/+/ack                        mixed/+  mixed/+/state
    mixer       CN=mixer.<mixer>.<fleet>   mixed/<own>  mixed/<own>/state     metrics/+  mixed/<own>/ack

Nobody but mixers receives `metrics/+`, and the controller has no right there at all (decision 0014). The will counts as
published. Nobody else has any right, and what is not in the table is denied. The unit tests hold it against the topics
that agent, controller and mixer use. Pure; how a broker is told is in `mosquitto`, `nats` and `emqx`.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import zip_longest
from typing import Final

from muster_controller.client_names import controller_name, mixer_of
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.topics import (
    ROOT,
    Channel,
    ControllerTopic,
    DeviceTopic,
    MixedChannel,
    MixedTopic,
    Topic,
    TrustTopic,
    WantTopic,
    build,
    chunk_filter,
)

# What stands for a name in the table. Neither can be an id, so replacing one never meets the other.
_FLEET = FleetId("{fleet}")
_OWN = DeviceId("{own}")
_ANY = DeviceId("+")


class Role(StrEnum):
    """What somebody is, by the name in the certificate."""

    DEVICE = "device"
    CONTROLLER = "controller"
    MIXER = "mixer"


class Access(StrEnum):
    """What is done with a topic; a subscription is a right to receive, retained messages included."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


def _topics(*topics: Topic) -> tuple[str, ...]:
    return tuple(build(_FLEET, topic) for topic in topics)


_WANT = _topics(WantTopic(Sha256("+")))
_BROADCAST = (*_topics(ControllerTopic(), TrustTopic("+")), chunk_filter(_FLEET, Sha256("+")))
_UP = (Channel.TWIN, Channel.PRESENCE, Channel.EVENT, Channel.ANSWER)
_DOWN = (Channel.ASSIGNMENT, Channel.ACK, Channel.CALL)
_WINDOWS = (f"{ROOT}/{_FLEET}/metrics/+",)  # Anonymous: the broker knows who sends, but the topic does not say it.
_SUMS = (MixedChannel.SUMS, MixedChannel.STATE)

TABLE: Final[Mapping[Role, Mapping[Access, tuple[str, ...]]]] = {
    Role.DEVICE: {
        Access.PUBLISH: (
            *_topics(*(DeviceTopic(_OWN, channel) for channel in _UP)),
            *_WANT,
            *_WINDOWS,
        ),
        Access.SUBSCRIBE: (*_topics(*(DeviceTopic(_OWN, channel) for channel in _DOWN)), *_BROADCAST),
    },
    Role.CONTROLLER: {
        Access.PUBLISH: (
            *_topics(*(DeviceTopic(_ANY, channel) for channel in _DOWN)),
            *_BROADCAST,
            *_topics(MixedTopic(_ANY, MixedChannel.ACK)),
        ),
        Access.SUBSCRIBE: (
            *_topics(*(DeviceTopic(_ANY, channel) for channel in _UP)),
            *_WANT,
            *_topics(*(MixedTopic(_ANY, channel) for channel in _SUMS)),
        ),
    },
    Role.MIXER: {
        Access.PUBLISH: _topics(*(MixedTopic(_OWN, channel) for channel in _SUMS)),
        Access.SUBSCRIBE: (*_WINDOWS, *_topics(MixedTopic(_OWN, MixedChannel.ACK))),
    },
}
"""MQTT filters with `{fleet}` and `{own}`, the latter being the device or the mixer in the certificate."""


def filters(role: Role, access: Access, fleet: FleetId, own: str = "") -> tuple[str, ...]:
    """Return the filters of `role` in `fleet`.

    Args:
        own: a device or mixer id, or what a broker's own language writes for the name in the certificate (`%u`).
    """
    return tuple(one.replace(_FLEET, fleet).replace(_OWN, own) for one in TABLE[role][access])


def denied(role: Role, fleet: FleetId) -> tuple[str, ...]:
    """Return the filters of devices that are nothing to `role`, for brokers whose rules for devices fit everybody.

    Those that have `{own}` in them are left out: nobody sends there or listens there.
    """
    mine = {one for access in Access for one in TABLE[role][access]}
    shared = dict.fromkeys(one for access in Access for one in TABLE[Role.DEVICE][access] if _OWN not in one)
    return tuple(one.replace(_FLEET, fleet) for one in shared if one not in mine)


def role_of(name: str, fleet: FleetId) -> Role:
    """Return what the common name of a certificate of `fleet` makes of its owner."""
    if name == controller_name(fleet):
        return Role.CONTROLLER
    return Role.DEVICE if mixer_of(name, fleet) is None else Role.MIXER


def allows(name: str, access: Access, topic: str, fleet: FleetId) -> bool:
    """Whether the owner of a certificate of `fleet` with common name `name` may do that to a topic or a filter."""
    own = mixer_of(name, fleet) or name
    return any(covers(one, topic) for one in filters(role_of(name, fleet), access, fleet, own))


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
