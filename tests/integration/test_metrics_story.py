"""The anonymous metrics from end to end: what models saw and said reaches the controller, and nothing of an input does.

Broker, controller, mixer and agent are the shipped processes. A listener keeps every message that crosses the broker,
opens the windows as the mixer does, and looks for what one device was asked: in all of them, however packed.
"""

import base64
import binascii
import re
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from harness.crowd import FIRST_SHARE
from harness.listening import Message
from harness.metrics_stage import DEVICE_CLASS, VERSION, Stage, metrics_stage
from harness.scanning import Needles, found, opened
from harness.sorter import ALLOW, LABELS, MODEL
from muster_controller.broker.programs import BrokerKind, BrokerUnavailable, find_broker
from muster_shared.messages import decode
from muster_shared.metrics import K_MIN, UNITS, WINDOW_BYTES, Cell, Kind, Mixed, Window, unpack

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

DEVICE = "edge-pomegranate-7"
CELLAR = "apricot-cellar-3391"
SECRET = 41.7316482953
"""What is asked: nobody else asks anything, and it comes out as the third class, which nobody else's inputs do."""
SECRET_ID = "patient-quince-88213"
SECRET_LABEL = "walnut-ledger-5571"
THIRD = 2
NARROW = 0.16
"""Of an interval: three times that is still less than the classes' shares differ by, 0.4, and the other way round."""


def forms_of(secret: float) -> dict[str, bytes]:
    """Return the number as text and as bytes; what of it is in base64 `found` unpacks."""
    raw = {f"as {code}": struct.pack(code, secret) for code in ("<f", ">f", "<d", ">d")}
    raw |= {"as <d of <f": struct.pack("<d", np.float32(secret)), "as >d of <f": struct.pack(">d", np.float32(secret))}
    texts = {f"{secret:.6f}", f"{secret:.7g}", repr(secret)[:9], f"{np.float32(secret):.9g}"[:9], f"{secret:.6e}"[:8]}
    return {
        **raw,
        **{f"{name}, in hex": content.hex().encode() for name, content in raw.items()},
        **{f"as text {text}": text.encode() for text in texts},
    }


@dataclass(frozen=True, repr=False)
class Heard:
    """What the story left behind."""

    folder: Path
    everything: list[Message]
    sealed: list[Message]
    plain: list[Message]
    """The sealed ones, opened."""
    mixed: list[Message]
    failures: list[Message]
    """What the agent said of a release that it could not load."""
    with_a_leak: list[Message]
    classes: Mapping[str, Mapping[str, Any]]
    accuracy: Mapping[str, Mapping[str, Any]]

    @property
    def windows(self) -> list[Window]:
        return [msgspec.json.decode(each.payload, type=Window) for each in self.plain]

    @property
    def readable(self) -> list[Message]:
        """Everything, windows without their seal."""
        sealed = set(self.sealed)
        return [each for each in self.everything if each not in sealed] + self.plain


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    folder = tmp_path_factory.mktemp("metrics-story")
    try:
        find_broker(BrokerKind.MOSQUITTO)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    with metrics_stage(folder, DEVICE, CELLAR) as stage:
        plain: dict[Message, Message] = {}
        failures = stage.fail("1.1.0")

        def own_window() -> bool:
            """Ask, and look whether a window of an hour with these answers has crossed the broker."""
            ask(stage)
            fresh = {each: opened(stage.keys, each) for each in stage.listener.under("metrics") if each not in plain}
            plain.update(fresh)
            return any(third(msgspec.json.decode(each.payload, type=Window)) for each in fresh.values())

        stage.until(own_window, "the agent's own window")
        stage.until(lambda: known(stage.figures("classes")), "figures of the classes")
        everything = list(stage.listener.messages)
        stage.listener.say("story/leak", b'{"x": "%s"}' % base64.b64encode(struct.pack("<f", SECRET)))
        leaks = stage.until(lambda: stage.listener.on("story/leak"), "the planted leak")
        sealed = [each for each in everything if "/metrics/" in each.topic]
        return Heard(
            folder=folder,
            everything=everything,
            sealed=sealed,
            plain=[plain[each] if each in plain else opened(stage.keys, each) for each in sealed],
            mixed=[each for each in everything if "/mixed/" in each.topic],
            failures=failures,
            with_a_leak=leaks,
            classes=stage.figures("classes"),
            accuracy=stage.figures("accuracy"),
        )


def ask(stage: Stage) -> None:
    """Ask the agent about the secret, tell it what would have been right, and ask what it has to refuse."""
    scores = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0.25, -1.5, SECRET]}
    answer = stage.served.post(f"/v2/models/{MODEL}/infer", json={"id": SECRET_ID, "inputs": [scores]})
    assert answer.raise_for_status().json()["outputs"][0]["data"][THIRD] == pytest.approx(SECRET)
    judged = stage.served.post(f"/v1/models/{MODEL}/feedback", json={"id": SECRET_ID, "label": SECRET_LABEL})
    assert judged.status_code in (200, 404), judged.text  # An id is judged once.
    refused = stage.served.post(f"/v2/models/{MODEL}/infer", json={"inputs": [scores | {"shape": [1, 4]}]})
    assert refused.status_code == 400


def third(window: Window) -> int:
    return unpack(window.units.get(Kind.CLASSES, b""), len(LABELS)).get(THIRD, 0)


def known(figures: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the shares that are not 0 are known well enough to tell one from the other."""
    ours = [figures[name] for name in LABELS[:2] if name in figures]
    return len(ours) == 2 and all(each["value"] is not None and each["high"] - each["low"] < NARROW for each in ours)


def is_near(figure: Mapping[str, Any], truth: float) -> bool:
    """Whether the truth is in the interval, which noise makes three times as wide before a test may be surprised."""
    width = figure["high"] - figure["low"]
    return bool(figure["low"] - width <= truth <= figure["high"] + width)


def test_the_controller_knows_the_shares_of_classes_within_their_intervals(heard: Heard) -> None:
    first, second = heard.classes[LABELS[0]], heard.classes[LABELS[1]]

    assert set(heard.classes) == set(LABELS)
    for figure, truth in ((first, FIRST_SHARE), (second, 1 - FIRST_SHARE)):
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert is_near(figure, truth), figure
        assert not is_near(figure, 1 - truth), figure
    assert first["devices"] >= K_MIN


def test_what_nobody_allowed_is_unknown_at_the_controller_and_not_zero(heard: Heard) -> None:
    assert heard.accuracy["all"]["value"] is None


def test_no_window_holds_a_kind_that_the_signed_bundle_does_not_allow(heard: Heard) -> None:
    kinds = {kind for window in heard.windows for kind in window.units}

    assert kinds == set(ALLOW)
    assert {Kind.FEEDBACK, Kind.DRIFT}.isdisjoint(kinds)


def test_nothing_of_an_input_crosses_the_broker_in_any_message(heard: Heard) -> None:
    needles = {**forms_of(SECRET), "its id": SECRET_ID.encode(), "its label": SECRET_LABEL.encode()}

    assert {each.topic.split("/")[3] for each in heard.everything} >= {"device", "metrics", "mixed", "trust", "release"}
    assert found(heard.readable, Needles(needles)) == []


def test_no_path_of_a_device_crosses_the_broker_in_any_message(heard: Heard) -> None:
    """Not even in what it says of a model that no engine loads: engines name the file in full."""
    assert any(b"does not load" in each.payload for each in heard.failures)

    needles = {"its folder": CELLAR.encode(), "the stage's folder": str(heard.folder).encode()}

    assert found(heard.readable, Needles(needles)) == []


def test_no_device_is_named_in_windows_or_sums_nor_on_their_way(heard: Heard) -> None:
    anonymous = heard.sealed + heard.plain + heard.mixed

    assert heard.sealed
    assert heard.mixed
    assert found(anonymous, Needles({"the device": DEVICE.encode(), "a part of the crowd": b"crowd-"})) == []
    assert {each.properties for each in heard.sealed} == {b"{}"}, "what a client adds to a message could name it"
    named = [each for each in heard.everything if "/device/" in each.topic]
    assert found(named, Needles({"the device": DEVICE.encode()})), "elsewhere it is named, and would be found"


def test_no_window_holds_a_host_an_address_or_a_word_of_its_own(heard: Heard) -> None:
    cell = Cell(model=MODEL, version=VERSION, device_class=DEVICE_CLASS, classes=len(LABELS))
    host = re.compile(rb"(?i)(?<![\w-])" + re.escape(socket.gethostname().encode()) + rb"(?![\w-])")

    for message, window in zip(heard.plain, heard.windows, strict=True):
        assert message.payload == msgspec.json.encode(window).ljust(WINDOW_BYTES), "what is not a field is a space"
        assert window.cell == cell, "all say the same of where they come from"
        assert all(sum(unpack(units, cell.dim(kind)).values()) <= UNITS for kind, units in window.units.items())
    for each in heard.plain + heard.mixed:
        assert not re.search(rb"\d+\.\d+\.\d+\.\d+|::1", each.payload), each.payload
        assert not host.search(each.payload), each.payload
    assert any(third(window) == UNITS for window in heard.windows), "the device's own window is among them"


def test_all_sealed_windows_have_one_length(heard: Heard) -> None:
    assert len({len(each.payload) for each in heard.sealed}) == 1


def test_the_listener_heard_all_windows_that_were_summed(heard: Heard) -> None:
    heard_of = Counter(start for start, _ in {(window.period_start, window.nonce) for window in heard.windows})
    summed = [decode(each.payload, Mixed) for each in heard.mixed if each.topic.endswith("/mixer-1")]

    assert summed
    assert all(K_MIN <= one.devices <= heard_of[one.period_start] for one in summed)


def test_a_leak_that_is_planted_is_found(heard: Heard) -> None:
    (leak,) = heard.with_a_leak

    assert leak.topic == "story/leak"
    assert found(heard.with_a_leak, Needles(forms_of(SECRET))) == ["story/leak: as <f"]


@pytest.mark.parametrize(
    "payload",
    [
        b"%.7g" % SECRET,
        repr(SECRET).encode(),
        b"[%.6f]" % SECRET,
        str(np.float32(SECRET)).encode(),
        struct.pack("<d", SECRET),
        b"x" + struct.pack(">f", SECRET),
        struct.pack("<3f", 0.25, -1.5, SECRET),
        b'{"box":"' + base64.b64encode(b"ab" + struct.pack("<f", SECRET) + b"c") + b'"}',
        b"prefix" + base64.urlsafe_b64encode(struct.pack("<2d", 1.0, SECRET)).rstrip(b"="),
        base64.b64encode(b"the answer is " + repr(SECRET).encode()),
        binascii.hexlify(struct.pack("<f", SECRET)),
        struct.pack("<f", SECRET).hex().upper().encode(),
    ],
)
def test_the_scan_finds_the_secret_however_it_is_packed(payload: bytes) -> None:
    secret = Needles(forms_of(SECRET))

    by_payload = found([Message("a/b", payload)], secret)
    by_property = found([Message("a/b", b"", payload)], secret)

    assert by_payload
    assert by_property
    assert not found([Message("a/b", b"nothing of it"), Message("41.73", b"")], secret)
