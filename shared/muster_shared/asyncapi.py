"""The protocol document: AsyncAPI 3.0, made from the topics and message types so that it cannot say anything else.

`python -m muster_shared.asyncapi > docs/protocol/asyncapi.json`; a test compares the committed file with the code.
"""

import json
import sys
from dataclasses import dataclass

import msgspec

from muster_shared import topics
from muster_shared.assignment import PAYLOAD_TYPE, Assignment
from muster_shared.bundle import CHUNK_BYTES
from muster_shared.call import PAYLOAD_TYPE as CALL_TYPE
from muster_shared.call import Call
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.messages import (
    ANSWER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Ack,
    Answer,
    ControllerSession,
    Event,
    Presence,
    TrustFiles,
    Twin,
    Want,
)
from muster_shared.metrics import COHORTS, SEALED_BYTES_MAX, Mixed, MixedAck, MixerState, Sealed
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
)


@dataclass(frozen=True)
class _Channel:
    name: str
    topic: Topic
    message: type[msgspec.Struct] | None
    sender: str
    qos: int
    retained: bool
    summary: str


_DEVICE, _SHA256 = DeviceId("{device}"), Sha256("{sha256}")

_CHANNELS = (
    _Channel(
        "assignment",
        DeviceTopic(_DEVICE, Channel.ASSIGNMENT),
        Assignment,
        "controller",
        1,
        True,
        f"Signed desired state: a DSSE envelope with payload type {PAYLOAD_TYPE}; the schema is that of its payload.",
    ),
    _Channel(
        "ack", DeviceTopic(_DEVICE, Channel.ACK), Ack, "controller", 1, False, "Events that are safe in the database."
    ),
    _Channel(
        "call",
        DeviceTopic(_DEVICE, Channel.CALL),
        Call,
        "controller",
        1,
        False,
        f"A signed question: a DSSE envelope with payload type {CALL_TYPE}; the schema is that of its payload.",
    ),
    _Channel(
        "answer",
        DeviceTopic(_DEVICE, Channel.ANSWER),
        Answer,
        "device",
        1,
        False,
        f"What a device says to a call; at most {ANSWER_BYTES_MAX} bytes, once for each call.",
    ),
    _Channel("twin", DeviceTopic(_DEVICE, Channel.TWIN), Twin, "device", 1, True, "Reported state, whole."),
    _Channel(
        "presence",
        DeviceTopic(_DEVICE, Channel.PRESENCE),
        Presence,
        "device",
        1,
        True,
        "Online, or (by the broker, as the will) offline.",
    ),
    _Channel(
        "event",
        DeviceTopic(_DEVICE, Channel.EVENT),
        Event,
        "device",
        1,
        False,
        "Update steps, outcomes, refusals, faults; repeated until acknowledged, idempotent by id.",
    ),
    _Channel(
        "controller",
        ControllerTopic(),
        ControllerSession,
        "controller",
        1,
        True,
        "A controller or its broker began anew: devices publish their twins and open events again.",
    ),
    _Channel("trust", TrustTopic("{role}"), TrustFiles, "controller", 1, True, "TUF metadata of one role."),
    _Channel("want", WantTopic(_SHA256), Want, "device", 1, False, "A bitmap of the chunks that a device lacks."),
    _Channel(
        "chunk",
        ChunkTopic(_SHA256, 0),
        None,
        "controller",
        0,
        False,
        f"Raw bytes of one chunk ({CHUNK_BYTES} unless the manifest says otherwise), for every device that waits.",
    ),
    _Channel(
        "metrics",
        MetricsTopic(0),
        Sealed,
        "device",
        1,
        False,
        f"An anonymous window, sealed (HPKE) to a mixer's key that the offline keys sign; cohorts 0 to {COHORTS - 1};"
        f" at most {SEALED_BYTES_MAX} bytes. The controller has no right to this topic.",
    ),
    _Channel(
        "mixed",
        MixedTopic("{mixer}", MixedChannel.SUMS),
        Mixed,
        "mixer",
        1,
        False,
        "Noised sums of one cell and period; repeated until acknowledged, idempotent by batch.",
    ),
    _Channel(
        "mixed-ack",
        MixedTopic("{mixer}", MixedChannel.ACK),
        MixedAck,
        "controller",
        1,
        False,
        "Batches that are safe in the database.",
    ),
    _Channel(
        "mixer-state",
        MixedTopic("{mixer}", MixedChannel.STATE),
        MixerState,
        "mixer",
        1,
        True,
        "A mixer's budget and counts, whole.",
    ),
)


def document() -> dict[str, object]:
    """Return the AsyncAPI document."""
    types = [channel.message for channel in _CHANNELS if channel.message is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    channels: dict[str, object] = {}
    operations: dict[str, object] = {}
    for channel in _CHANNELS:
        address = topics.build(FleetId("{fleet}"), channel.topic).replace("/chunk/0", "/chunk/{index}")
        address = address.replace("/metrics/0", "/metrics/{cohort}")
        names = [level.strip("{}") for level in address.split("/") if level.startswith("{")]
        payload: object = {"type": "string", "format": "binary"}
        if channel.message is not None:
            payload = {"$ref": f"#/components/schemas/{channel.message.__name__}"}
        channels[channel.name] = {
            "address": address,
            "summary": channel.summary,
            "parameters": {name: {} for name in names},
            "messages": {channel.name: {"payload": payload}},
            "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retained}},
        }
        operations[f"{channel.sender}-sends-{channel.name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel.name}"},
            "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retained}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Muster device messages",
            "version": topics.ROOT.rpartition("/")[2],
            "description": "JSON over MQTT 5, with 3.1.1 as the floor. Unknown fields are ignored; times are"
            f" Unix seconds; a message has at most {MESSAGE_BYTES_MAX} bytes.",
        },
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }


def text() -> str:
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
