"""Every MQTT topic, built and parsed in this one place.

    muster/v1/<fleet>/device/<id>/assignment      controller -> device, retained: signed desired state
    muster/v1/<fleet>/device/<id>/call            controller -> device: a signed question, short-lived
    muster/v1/<fleet>/device/<id>/answer          device -> controller: what it says to that
    muster/v1/<fleet>/device/<id>/ack             controller -> device: events that are safe in the database
    muster/v1/<fleet>/device/<id>/twin            device -> controller, retained: reported state
    muster/v1/<fleet>/device/<id>/presence        device or its will -> controller, retained
    muster/v1/<fleet>/device/<id>/event           device -> controller: steps, outcomes, faults
    muster/v1/<fleet>/controller                  controller -> all, retained: a new session asks for twins again
    muster/v1/<fleet>/trust/<role>                controller -> all, retained: TUF metadata
    muster/v1/<fleet>/release/<sha256>/want       device -> controller: which chunks are missing
    muster/v1/<fleet>/release/<sha256>/chunk/<n>  controller -> all who wait: raw bytes
    muster/v1/<fleet>/metrics/<cohort>            device -> mixer: sealed anonymous windows
    muster/v1/<fleet>/mixed/<mixer>               mixer -> controller: noised sums
    muster/v1/<fleet>/mixed/<mixer>/ack           controller -> mixer: batches that are safe in the database
    muster/v1/<fleet>/mixed/<mixer>/state         mixer -> controller, retained: its budget and counts

At most 7 slashes, no dots, no reliance on retained messages through wildcards (AWS IoT Core, Event Grid, NATS).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, Sha256

ROOT = "muster/v1"
CHUNK_INDEX_MAX = 1 << 24


class Channel(Enum):
    """What a device topic carries."""

    ASSIGNMENT = "assignment"
    ACK = "ack"
    TWIN = "twin"
    PRESENCE = "presence"
    EVENT = "event"
    CALL = "call"
    ANSWER = "answer"


_UP = (Channel.TWIN, Channel.PRESENCE, Channel.EVENT, Channel.ANSWER)
_CHANNELS = {channel.value for channel in Channel}


@dataclass(frozen=True)
class DeviceTopic:
    device: DeviceId
    channel: Channel


@dataclass(frozen=True)
class ControllerTopic:
    pass


@dataclass(frozen=True)
class TrustTopic:
    role: str


@dataclass(frozen=True)
class WantTopic:
    sha256: Sha256


@dataclass(frozen=True)
class ChunkTopic:
    sha256: Sha256
    index: int


@dataclass(frozen=True)
class MetricsTopic:
    cohort: int


class MixedChannel(Enum):
    """What a topic of a mixer carries."""

    SUMS = ""
    ACK = "ack"
    STATE = "state"


@dataclass(frozen=True)
class MixedTopic:
    mixer: str
    channel: MixedChannel


Topic = DeviceTopic | ControllerTopic | TrustTopic | WantTopic | ChunkTopic | MetricsTopic | MixedTopic


def build(fleet: FleetId, topic: Topic) -> str:
    """Return the topic string of `topic` in `fleet`."""
    prefix = f"{ROOT}/{fleet}"
    match topic:
        case DeviceTopic(device, channel):
            return f"{prefix}/device/{device}/{channel.value}"
        case ControllerTopic():
            return f"{prefix}/controller"
        case TrustTopic(role):
            return f"{prefix}/trust/{role}"
        case WantTopic(sha256):
            return f"{prefix}/release/{sha256}/want"
        case ChunkTopic(sha256, index):
            return f"{prefix}/release/{sha256}/chunk/{index}"
        case MetricsTopic(cohort):
            return f"{prefix}/metrics/{cohort}"
        case MixedTopic(mixer, channel):
            return f"{prefix}/mixed/{mixer}/{channel.value}".rstrip("/")


def parse(fleet: FleetId, text: str) -> Topic:
    """Return what `text` names in `fleet`.

    Raises:
        WireError: it is of another fleet, or no topic of ours.
    """
    prefix = f"{ROOT}/{fleet}/"
    if text.startswith(prefix):
        match text[len(prefix) :].split("/"):
            case ["device", device, channel] if channel in _CHANNELS:
                return DeviceTopic(DeviceId(ids.name(device, "device")), Channel(channel))
            case ["controller"]:
                return ControllerTopic()
            case ["trust", role]:
                return TrustTopic(ids.name(role, "role"))
            case ["release", sha256, "want"]:
                return WantTopic(ids.sha256(sha256))
            case ["release", sha256, "chunk", index] if index.isascii() and index.isdigit() and len(index) < 9:
                if int(index) < CHUNK_INDEX_MAX:
                    return ChunkTopic(ids.sha256(sha256), int(index))
            case ["metrics", cohort] if cohort.isascii() and cohort.isdigit() and len(cohort) < 4:
                return MetricsTopic(int(cohort))
            case ["mixed", mixer, *channel] if len(channel) < 2 and "".join(channel) in ("", "ack", "state"):
                return MixedTopic(ids.name(mixer, "mixer"), MixedChannel("".join(channel)))
            case _:
                pass
    raise WireError(f"{text[:120]!r} is not a topic of fleet {fleet!r}")


def controller_filters(fleet: FleetId) -> tuple[str, ...]:
    """Return the filters that a controller subscribes to (at most 8)."""
    prefix = f"{ROOT}/{fleet}"
    return (
        *(f"{prefix}/device/+/{channel.value}" for channel in _UP),
        f"{prefix}/release/+/want",
        f"{prefix}/mixed/+",
        f"{prefix}/mixed/+/state",
    )


def mixer_filters(fleet: FleetId, mixer: str, cohorts: Iterable[int]) -> tuple[str, ...]:
    """Return the filters of a mixer: one for all cohorts, or one for each of up to 7, and its acknowledgements."""
    prefix, own = f"{ROOT}/{fleet}", tuple(cohorts)
    raw = [f"{prefix}/metrics/{cohort}" for cohort in own] if len(own) < 8 else [f"{prefix}/metrics/+"]
    return (*raw, f"{prefix}/mixed/{mixer}/ack")


def device_filters(fleet: FleetId, device: DeviceId) -> tuple[str, ...]:
    """Return the filters that a device holds all the time (at most 8). Chunks are subscribed while they are needed."""
    prefix = f"{ROOT}/{fleet}"
    return (
        f"{prefix}/device/{device}/assignment",
        f"{prefix}/device/{device}/ack",
        f"{prefix}/device/{device}/call",
        f"{prefix}/controller",
        f"{prefix}/trust/+",
    )


def chunk_filter(fleet: FleetId, sha256: Sha256) -> str:
    """Return the filter of every chunk of one file."""
    return f"{ROOT}/{fleet}/release/{sha256}/chunk/+"
