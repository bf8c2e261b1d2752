"""Topics, messages and assignments at the edge: what is built is parsed back, and garbage is one error."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key

from muster_shared import assignment, topics
from muster_shared.assignment import Assignment, AssignmentKeys, ModelAssignment, Watch
from muster_shared.bundle import BundleFile, Manifest, describe_file, encode_manifest, parse_manifest
from muster_shared.errors import AssignmentForged, ManifestInvalid, WireError
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.messages import (
    MESSAGE_BYTES_MAX,
    Event,
    Presence,
    ReleaseRef,
    Twin,
    Want,
    decode,
    encode,
    pack_bits,
    unpack_bits,
)
from muster_shared.topics import Channel, ChunkTopic, ControllerTopic, DeviceTopic, TrustTopic, WantTopic

FLEET = FleetId("demo")
DIGEST = Sha256("ab" * 32)


def release(version: str = "1.0.0") -> ReleaseRef:
    return ReleaseRef(model=ModelName("digits"), version=version, release=1, bundle_sha256=DIGEST, bundle_length=1000)


def desired(device: str = "camera-1") -> Assignment:
    watch = Watch(rollout=RolloutId("r"), wave=0, window_s=1, window_max_s=2)
    return Assignment(
        fleet=FLEET,
        device=DeviceId(device),
        counter=3,
        issued_at=0,
        expires_at=10,
        models=(ModelAssignment(release=release(), watch=watch),),
    )


def keys_of(signer: CryptoSigner) -> AssignmentKeys:
    key: Key = signer.public_key
    return AssignmentKeys(keys={key.keyid: key.to_dict()})


@pytest.mark.parametrize(
    "topic",
    [
        *(DeviceTopic(DeviceId("camera-1"), channel) for channel in Channel),
        ControllerTopic(),
        TrustTopic("release-digits"),
        WantTopic(DIGEST),
        ChunkTopic(DIGEST, 17),
    ],
)
def test_a_topic_that_is_built_is_parsed_back(topic: topics.Topic) -> None:
    assert topics.parse(FLEET, topics.build(FLEET, topic)) == topic


@given(st.text(max_size=200))
def test_any_other_text_is_refused_as_a_topic(text: str) -> None:
    for candidate in (text, f"muster/v1/demo/{text}"):
        try:
            topics.parse(FLEET, candidate)
        except WireError:
            continue


@pytest.mark.parametrize("text", ["muster/v1/other/controller", "muster/v1/demo/device/../twin", "muster/v1/demo/x"])
def test_a_topic_of_another_fleet_or_shape_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        topics.parse(FLEET, text)


def test_a_device_subscribes_to_no_more_than_eight_filters() -> None:
    assert len(topics.device_filters(FLEET, DeviceId("d"))) <= 8
    assert len(topics.controller_filters(FLEET)) <= 8


@given(st.binary(max_size=300))
def test_garbage_is_one_error_whatever_the_message(raw: bytes) -> None:
    for kind in (Twin, Event, Want, Presence):
        try:
            decode(raw, kind)
        except WireError:
            continue


def test_a_message_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(WireError, match="limit"):
        decode(b"[" * (MESSAGE_BYTES_MAX + 1), Presence)


def test_unknown_fields_are_ignored_and_other_formats_refused() -> None:
    presence = Presence(device=DeviceId("d"), boot="b", online=True, sent_at=1.0)
    document = json.loads(encode(presence))

    assert decode(json.dumps({**document, "newer": [1, 2]}).encode(), Presence) == presence
    with pytest.raises(WireError, match="format 2"):
        decode(json.dumps({**document, "v": 2}).encode(), Presence)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_bitmap_gives_back_the_indices_that_were_packed(case: tuple[int, set[int]]) -> None:
    count, indices = case

    assert unpack_bits(pack_bits(tuple(sorted(indices)), count), count) == tuple(sorted(indices))


def test_an_assignment_is_opened_with_the_key_that_signed_it() -> None:
    signer = CryptoSigner.generate_ed25519()

    envelope = assignment.sign(desired(), signer)

    assert assignment.open_signed(envelope, keys_of(signer)) == desired()


def test_an_assignment_of_another_key_is_forged() -> None:
    envelope = assignment.sign(desired(), CryptoSigner.generate_ed25519())

    with pytest.raises(AssignmentForged):
        assignment.open_signed(envelope, keys_of(CryptoSigner.generate_ed25519()))


def test_an_assignment_whose_payload_was_exchanged_is_forged() -> None:
    signer = CryptoSigner.generate_ed25519()
    mine = json.loads(assignment.sign(desired(), signer))
    other = json.loads(assignment.sign(desired("camera-2"), CryptoSigner.generate_ed25519()))

    with pytest.raises(AssignmentForged):
        assignment.open_signed(json.dumps({**mine, "payload": other["payload"]}).encode(), keys_of(signer))


@pytest.mark.parametrize("payload_type", ["text/plain", "", 7, None, [], {}])
def test_an_envelope_of_something_else_is_no_assignment_whoever_signed_it(payload_type: object) -> None:
    signer = CryptoSigner.generate_ed25519()
    envelope = json.loads(assignment.sign(desired(), signer))

    with pytest.raises(WireError, match="not of an assignment"):
        assignment.open_signed(json.dumps({**envelope, "payloadType": payload_type}).encode(), keys_of(signer))


@pytest.mark.parametrize("counter", [-1, 0, assignment.COUNTER_MAX + 1, 1 << 63, 1 << 64, 10**300])
def test_a_counter_that_not_everybody_can_hold_is_no_assignment(counter: int) -> None:
    payload = assignment_with_counter(counter)

    with pytest.raises(WireError):
        assignment.parse(payload)


def test_the_last_of_all_counters_is_an_assignment() -> None:
    assert assignment.parse(assignment_with_counter(assignment.COUNTER_MAX)).counter == assignment.COUNTER_MAX


def assignment_with_counter(counter: int) -> bytes:
    return json.dumps({**json.loads(encode(desired())), "counter": counter}).encode()


def test_an_envelope_names_the_keys_that_are_said_to_have_signed_it() -> None:
    signer = CryptoSigner.generate_ed25519()

    assert assignment.signers(assignment.sign(desired(), signer)) == {signer.public_key.keyid}


@given(st.binary(max_size=400) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_nobody_is_said_to_have_signed_garbage(raw: bytes) -> None:
    assert assignment.signers(raw) == frozenset()


@given(st.binary(max_size=400) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_garbage_is_no_assignment(raw: bytes) -> None:
    signer = CryptoSigner.generate_ed25519()

    with pytest.raises(WireError):
        assignment.open_signed(raw, keys_of(signer))


def test_a_manifest_that_is_encoded_is_parsed_back() -> None:
    assert parse_manifest(encode_manifest(manifest())) == manifest()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"release": 0}, "release"),
        ({"format": 2}, "format"),
        ({"inputs": []}, "inputs"),
        ({"version": "one"}, "semantic version"),
        ({"model": "../etc"}, "model"),
        ({"golden": {"file": "missing.npz"}}, "missing.npz"),
        ({"slo": {"accuracy": 2.0}}, "accuracy"),
    ],
)
def test_a_manifest_that_contradicts_itself_names_the_field(change: dict[str, object], named: str) -> None:
    document = {**json.loads(encode_manifest(manifest())), **change}

    with pytest.raises(ManifestInvalid, match=named):
        parse_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "c:\\x", ""])
def test_a_file_outside_the_bundle_is_refused(path: str) -> None:
    file = msgspec.structs.replace(describe_file("x", b"x" * 10), path=path)
    document = msgspec.structs.replace(manifest(), files=(*manifest().files, file))

    with pytest.raises(ManifestInvalid, match="inside the bundle"):
        parse_manifest(encode_manifest(document))


def test_a_file_with_too_few_chunks_is_refused() -> None:
    whole = describe_file("model.onnx", bytes(200_000))
    short: BundleFile = msgspec.structs.replace(whole, chunks=whole.chunks[:-1])
    files = (short, *manifest().files[1:])

    with pytest.raises(ManifestInvalid, match="chunks"):
        parse_manifest(encode_manifest(msgspec.structs.replace(manifest(), files=files)))


def manifest() -> Manifest:
    from muster_shared.bundle import Golden, TensorSpec, Variant

    return Manifest(
        model=ModelName("digits"),
        version="1.0.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="p", datatype="FP32", shape=(-1, 10)),),
        files=(describe_file("model.onnx", bytes(200_000)), describe_file("golden.npz", b"golden")),
        variants=(Variant(name="ort", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
    )
