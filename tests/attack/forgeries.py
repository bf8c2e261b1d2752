"""Messages that nobody honest sends, for every parser of the agent and of the controller.

Most break on the way in. The last of each list are well-formed and lie: signed by a stolen key, or said by a device
that belongs to somebody else now.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

from muster_shared.assignment import PAYLOAD_TYPE
from muster_shared.messages import MESSAGE_BYTES_MAX, ReleaseRef

NONSENSE: tuple[bytes, ...] = (
    b"\x00",
    b"null",
    b"[]",
    b'"text"',
    b"1e999",
    b"\xff\xfe\xfd",
    b'{"v": 1',
    b'{"v": 2}',
    b'{"v": true}',
    b"[" * 30_000,
    b'{"a":' * 20_000,
    b"9" * 30_000,
    b'{"v":1,"\\ud800":"\\udfff"}',
    b" " * (MESSAGE_BYTES_MAX - 1000),
)
NUMBERS: tuple[str, ...] = ("-1", "0.5", "true", "null", '"1"', "1e308", "-0.0", "18446744073709551616", "9" * 400)


def envelopes() -> Iterator[bytes]:
    """Yield what looks like a signed assignment and is none."""
    payload = base64.b64encode(b"{}").decode()
    signature = {"keyid": "ab" * 32, "sig": payload}
    whole = {"payload": payload, "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    for name in whole:
        yield json.dumps({key: value for key, value in whole.items() if key != name}).encode()
        yield json.dumps({**whole, name: 7}).encode()
    yield json.dumps({**whole, "payload": "!!!"}).encode()
    yield json.dumps({**whole, "payloadType": "text/plain"}).encode()
    yield json.dumps({**whole, "signatures": [signature] * 900}).encode()
    yield json.dumps({**whole, "signatures": [{"keyid": None, "sig": 1}]}).encode()


def assignments(fleet: str, device: str, release: ReleaseRef) -> Iterator[bytes]:
    """Yield assignments as whoever has stolen the assignment key would sign them."""
    named: dict[str, Any] = {name: getattr(release, name) for name in release.__struct_fields__}
    watch = {"rollout": "r", "wave": 0, "window_s": 1.0, "window_max_s": 2.0}
    honest: dict[str, Any] = {
        "fleet": fleet,
        "device": device,
        "counter": 1,  # Replayed, where nothing else is wrong: what is obeyed is another attack.
        "issued_at": 0.0,
        "expires_at": 1e300,
        "models": [{"release": named}],
    }

    def changed(where: str, text: str) -> bytes:
        return json.dumps({**honest, where: "@"}).replace('"@"', text).encode()

    for field in ("counter", "issued_at", "expires_at", "v"):
        for number in ("-1", "true", "null", '"1"', "9" * 400, "18446744073709551616"):
            if (field, number) not in (("issued_at", "-1"), ("expires_at", "9" * 400)):
                yield changed(field, number)
    yield changed("models", "{}")
    yield changed("models", "[null]")
    yield json.dumps({**honest, "models": [{"release": named}] * 2}).encode()
    yield json.dumps({**honest, "models": [{"release": {**named, "model": f"m{n}"}} for n in range(65)]}).encode()
    for field, value in (("model", "../../etc"), ("version", "../.."), ("bundle_sha256", "../" * 21), ("model", "")):
        yield json.dumps({**honest, "models": [{"release": {**named, field: value}}]}).encode()
    yield json.dumps({**honest, "models": [{"release": named, "watch": {**watch, "window_s": None}}]}).encode()
    yield json.dumps({**honest, "models": [{"release": {**named, "bundle_length": -1}}]}).encode()


def trust(role: str) -> Iterator[bytes]:
    """Yield trust messages of `role` that hold no metadata."""
    name = "timestamp.json" if role == "timestamp" else f"2.{role}.json"
    version = '{"signed": {"_type": "ROLE", "version": 1e999}, "signatures": []}'.replace("ROLE", role)
    for text in ("", "{}", "[" * 5_000, version):
        yield json.dumps({"role": role, "files": {name: text}}).encode()
    for other in ("../../agent.toml", "/etc/passwd", f"0.{role}.json", f"-1.{role}.json", "\x00", "x" * 9_000):
        yield json.dumps({"role": role, "files": {other: "{}"}}).encode()
    yield json.dumps({"role": "root" if role != "root" else "targets", "files": {name: "{}"}}).encode()
    yield json.dumps({"role": role, "files": {f"{n}.{role}.json": "" for n in range(1, 2_000)}}).encode()


def twins(device: str) -> Iterator[bytes]:
    """Yield twins that a device of somebody else may send in its own name."""
    hardware = {"device_class": "lab", "arch": "x86_64"}
    honest = {"device": device, "boot": "b", "sequence": 1, "agent_version": "1", "counter": 1, "hardware": hardware}
    for field in ("sent_at", "sequence", "counter"):
        for number in NUMBERS:
            raw = json.dumps({"sent_at": 1.0, **honest, field: "@"})
            yield raw.replace('"@"', number).encode()
    for text in ("\x00", "\ud800", "<script>", "x" * 30_000):
        yield json.dumps({"sent_at": 2.0, **honest, "boot": text, "labels": {text: text}}).encode()
    yield json.dumps({"sent_at": 1.0, **honest, "device": "somebody-else"}).encode()


def events(device: str, release: ReleaseRef) -> Iterator[bytes]:
    """Yield events that a device of somebody else may send in its own name."""
    named: dict[str, Any] = {name: getattr(release, name) for name in release.__struct_fields__}
    step = {"type": "step", "release": named, "step": "committed"}
    outcome = {"type": "outcome", "release": named, "rollout": "r", "wave": 0, "good": True, "reason": "x"}
    honest: dict[str, Any] = {"device": device, "at": 1.0}
    for number, where in enumerate(("at", "seconds", "bytes_fetched", "attempt", "wave")):
        for turn, text in enumerate(NUMBERS):
            body = {**(outcome if where == "wave" else step), **({} if where == "at" else {where: "@"})}
            said = {**honest, "id": f"{number:012x}{turn:012x}", "body": body, **({"at": "@"} if where == "at" else {})}
            yield json.dumps(said).replace('"@"', text).encode()
    for text in ("", "\x00", "x" * 30_000, "\ud800"):
        yield json.dumps({**honest, "id": text, "body": step}).encode()
        yield json.dumps({**honest, "id": "e" * 24, "body": {**step, "detail": text}}).encode()
    yield json.dumps({**honest, "id": "f" * 24, "device": "somebody-else", "body": step}).encode()
    yield json.dumps({**honest, "id": "0" * 24, "body": {"type": "nothing"}}).encode()


def wants(device: str, length: int) -> Iterator[bytes]:
    """Yield requests for chunks that cannot be answered."""
    for chunk_bytes in (0, -1, 1, 61_440, 1 << 62):
        for said in (0, -1, length, 1 << 62):
            missing = base64.b64encode(b"\xff" * 4_000).decode()
            yield json.dumps(
                {"device": device, "length": said, "chunk_bytes": chunk_bytes, "missing": missing}
            ).encode()
    yield json.dumps({"device": device, "length": length, "chunk_bytes": 1024, "missing": "!!"}).encode()
