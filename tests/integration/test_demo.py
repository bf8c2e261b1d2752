"""The story as `muster demo --once` tells it, with a small fleet: exit code, summary, and all that its broker carried.

Where Mosquitto is, the story has an ear (`harness.demo_ear`), and all that was heard is searched for what the demo's
applications asked, for paths of this machine, and for names of devices where none may be.
"""

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.demo_ear import heard
from harness.demo_inputs import forms_of_inputs
from harness.listening import Message
from harness.scanning import Needles, Pattern, Pieces, found, opened, views
from muster_controller.broker.programs import BrokerKind, BrokerUnavailable, find_broker
from muster_controller.mixer.folder import MixerFolder
from muster_shared import topics
from muster_shared.bundle import parse_manifest
from muster_shared.ids import ModelName
from muster_shared.messages import Want, decode
from muster_shared.metrics import COHORTS, K_MIN, Mixed, Window
from muster_shared.topics import ChunkTopic, DeviceTopic, MetricsTopic, MixedChannel, MixedTopic, Topic, WantTopic
from muster_simulator.demo import plan
from muster_simulator.demo.plan import CUT_OFF_S, FLEET
from muster_simulator.demo.stage import MUSTER
from muster_simulator.workloads import catalogue

pytestmark = [pytest.mark.broker, pytest.mark.timeout(410)]

ROOT = Path(__file__).parents[2]  # Fetched weights are cached below it, as for `make demo`.
DEVICES = 20
STORY_S = 400.0  # 110 s on two processors of its own.
CHUNK_BYTES = 61_440
OPENED = " opened"


@dataclass(frozen=True, repr=False)
class Told:
    """What the story left behind."""

    folder: Path
    status: int
    said: str
    summary: dict[str, Any]
    everything: list[Message]
    """That crossed the broker; empty where nobody can listen."""
    readable: list[Message] = field(default_factory=list)
    """All of it, windows without their seal, and chunks of signed files without their bytes, which are known."""
    odd_chunks: list[str] = field(default_factory=list)
    """Those that are no piece of a file that was signed."""

    @property
    def devices(self) -> set[str]:
        simulated = {path.name for path in (self.folder / "load" / "identities").iterdir()}
        return simulated | {agent.device for agent in plan.AGENTS}

    @property
    def windows(self) -> list[Window]:
        return [msgspec.json.decode(each.payload, type=Window) for each in self.readable if OPENED in each.topic]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def can_listen() -> bool:
    try:
        find_broker(BrokerKind.MOSQUITTO)
    except BrokerUnavailable:
        return False
    return True


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Tell the story, once for all tests."""
    place = tmp_path_factory.mktemp("story")
    folder, record = place / "demo", place / "record"
    words = ["demo", "--once", "--json", "--dir", str(folder), "--http-port", str(free_port())]
    words += ["--devices", str(DEVICES)]
    python, environment = ["-c", MUSTER], dict(os.environ)
    if can_listen():
        python, words = ["-m", "harness.demo_ear", str(record)], [*words, "--broker", BrokerKind.MOSQUITTO.value]
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "tests"), environment.get("PYTHONPATH", "")))

    ended = subprocess.run(
        [sys.executable, *python, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=STORY_S,
        check=False,
    )

    summary = json.loads(ended.stdout) if ended.stdout else {}
    everything = heard(record) if record.exists() else []
    story = Told(folder, ended.returncode, ended.stderr, summary, everything)
    _read(story)
    return story


def _read(told: Told) -> None:
    files = (path.read_bytes() for path in (told.folder / "bundles").glob("*/*/*"))
    signed = {sha256(content).hexdigest(): content for content in files}
    keys = MixerFolder(told.folder / "mixer").seal_keys() if told.everything else {}
    for each in told.everything:
        match topic_of(each):
            case ChunkTopic(name, index):
                begin = index * CHUNK_BYTES
                if each.payload != signed.get(name, b"")[begin : begin + CHUNK_BYTES]:
                    told.odd_chunks.append(each.topic)
                told.readable.append(each._replace(payload=b""))
            case MetricsTopic():
                told.readable.extend((each, opened(keys, each)))
            case _:
                told.readable.append(each)


@pytest.fixture
def listened(told: Told) -> Told:
    if not told.everything:
        pytest.skip("nobody can listen without Mosquitto" if not can_listen() else "the story was not told")
    return told


@pytest.fixture(scope="module")
def inputs(told: Told) -> Pieces:
    """All that the demo's applications ask. Mixers list their cohorts, which no input is behind."""
    cohorts = json.dumps(range(COHORTS), default=list, separators=(",", ":")).encode()
    return Pieces(forms_of_inputs(told.folder / "bundles"), said_anyway=[cohorts])


def topic_of(message: Message) -> Topic:
    """Return what the topic is; raises WireError where it is none of ours."""
    return topics.parse(FLEET, message.topic.removesuffix(OPENED))


def names_of(told: Told) -> re.Pattern[bytes]:
    """Return what matches the name of a device, and no longer name in which it stands."""
    names = "|".join(sorted(map(re.escape, [*told.devices, plan.VISITOR, plan.STRANGER])))
    return re.compile(rb"(?<![\w-])(?:" + names.encode() + rb")(?![\w-])")


def test_the_story_holds_from_the_first_key_to_the_last_fault(told: Told) -> None:
    summary = told.summary

    assert told.status == 0, told.said[-4000:]
    assert summary["ok"]
    rollouts = {(each["model"], each["version"]): each for each in summary["rollouts"]}
    for model in ("digits", "magika"):
        assert rollouts[model, "2.0.0"]["state"] == "finished"
        assert rollouts[model, "2.0.0"]["exposed"] == DEVICES + 5
        assert rollouts[model, "3.0.0"]["state"] == "aborted"
        assert rollouts[model, "3.0.0"]["exposed"] <= 11
        assert rollouts[model, "3.0.0"]["bytes_fetched_after_abort"] == 0
        assert rollouts[model, "3.0.0"]["verdicts"][-1]["e"] >= 20
    assert rollouts["digits", "2.1.0"]["exposed"] == DEVICES + 4  # One was cut off.
    assert summary["traffic"]["failed"] == 0
    right = {(each["model"], each["version"]): each["accuracy"] for each in summary["traffic"]["real"]}
    for model in ("digits", "magika"):
        assert right[model, "1.0.0"] < right[model, "2.0.0"]
    assert {fault["device"] for fault in summary["faults"]} == {"kiosk-1", "machine-1"}
    refused = [each["who"] for each in summary["refusals"]]
    assert refused == ["stranger", "visitor-1", "visitor-1", "camera-2", "camera-2"]
    assert summary["cut_off_s"] < CUT_OFF_S
    assert not (told.folder / "pids.json").exists()
    assert "open_lab" not in (told.folder / "logs" / "controller.log").read_text()
    assert len(list((told.folder / "load" / "identities").glob("*/current/session.crt"))) == DEVICES


def test_the_ear_heard_everything_that_the_broker_carried(listened: Told) -> None:
    """Each kind of message of each device, every chunk of each file, and every window that was summed."""
    kinds = {each.topic.split("/")[3] for each in listened.everything}
    said: dict[str, set[str]] = {device: set() for device in listened.devices}
    chunks: dict[str, set[int]] = {}
    sums: list[Mixed] = []
    for each in listened.everything:
        match topic_of(each):
            case DeviceTopic(device, channel):
                said[device].add(channel.value)
            case ChunkTopic(name, index):
                chunks.setdefault(name, set()).add(index)
            case MixedTopic(_, MixedChannel.SUMS):
                sums.append(decode(each.payload, Mixed))

    assert kinds == {"device", "controller", "trust", "release", "metrics", "mixed"}
    assert all(channels >= {"assignment", "ack", "twin", "presence", "event"} for channels in said.values()), said
    assert chunks
    assert all(found == set(range(len(found))) for found in chunks.values())
    windows = Counter((window.cell.model, window.cell.version, window.period_start) for window in listened.windows)
    assert sums
    assert all(K_MIN <= one.devices <= windows[one.cell.model, one.cell.version, one.period_start] for one in sums)


def test_a_chunk_is_a_piece_of_a_file_that_was_signed_and_nothing_else(listened: Told) -> None:
    """Such files are made before any application asks; so they need not be searched."""
    assert listened.odd_chunks == []


def test_nothing_of_an_input_crosses_the_broker(listened: Told, inputs: Pieces) -> None:
    assert len(inputs) > 100_000
    assert listened.summary["traffic"]["requests"] > 1_000

    assert found(listened.readable, inputs) == []


def test_no_path_of_this_machine_crosses_the_broker(listened: Told) -> None:
    places = {str(each): str(each).encode() for each in (listened.folder, ROOT, sys.prefix)}
    absolute = Pattern("a path", rb"/(?:home|tmp|usr|var|root|opt|proc|sys|etc|mnt|srv|work|Users|private)/[\w.-]+")

    assert found(listened.readable, Needles(places), absolute) == []


def test_a_device_is_named_on_its_own_topics_and_in_what_it_wants_and_nowhere_else(listened: Told) -> None:
    """So not in windows, sealed or open, nor in sums, which are the metrics; nor in what is for all."""
    pattern = names_of(listened)
    astray: list[str] = []
    at_home = 0
    for each in listened.readable:
        match topic_of(each):
            case DeviceTopic(device, _):
                allowed = {str(device)}
            case WantTopic():
                allowed = {str(decode(each.payload, Want).device)}
            case _:
                allowed = set()
        names = {name.decode() for view in views(each) for name in pattern.findall(view)}
        at_home += bool(names & allowed)
        astray += [f"{each.topic} names {name}" for name in names - allowed]

    assert astray == []
    assert at_home > 1_000, "where they may be named they are, so the search finds them"


@pytest.mark.parametrize("model", plan.MODELS)
@pytest.mark.parametrize("form", ["bytes", "base64", "hex", "text", "tensor", "numbers"])
def test_an_input_that_is_planted_in_a_message_is_found(
    listened: Told, inputs: Pieces, model: ModelName, form: str
) -> None:
    said = next(each for each in listened.everything if each.topic.endswith("/twin"))
    asked = catalogue.inputs(model)
    content = asked.contents[len(asked) // 2]
    manifest = parse_manifest((listened.folder / "bundles" / model / "2.0.0" / "bundle.json").read_bytes())
    tensor = asked.encode(manifest.inputs[0], content)
    leak = {
        "bytes": content[:1000],
        "base64": base64.b64encode(b"x" + content[:1000]),
        "hex": content[:1000].hex().encode(),
        "text": json.dumps(content[:1000].decode("latin-1")).encode(),
        "tensor": base64.urlsafe_b64encode(tensor.tobytes()).rstrip(b"="),
        "numbers": json.dumps(tensor.ravel().tolist()).encode(),
    }[form]
    mutated = said._replace(payload=said.payload.replace(b'"v":1', b'"v":1,"trouble":"' + leak + b'"', 1))

    hits = found([mutated], inputs)

    assert mutated != said
    assert hits
    assert all(model in hit for hit in hits)
    assert found([said], inputs) == []
