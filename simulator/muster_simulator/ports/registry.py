"""A registry in memory: releases with real manifests and real bytes, and keys that cannot be guessed.

A signature is a keyed digest under a secret of this world: whoever has no secret cannot sign, as with real keys, at a
thousandth of the cost. `ReleaseKey` signs metadata, `OnlineKey` signs assignments; a thief may get the second alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import msgspec

from muster_controller.ports import Registry
from muster_shared.assignment import KEYS_ROLE, Assignment
from muster_shared.bundle import (
    BundleFile,
    Golden,
    HardwareMatch,
    Manifest,
    Slo,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    target_path,
)
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import Hardware, ReleaseRef, TrustFiles
from muster_simulator.stage import Stage

METADATA_LIFETIME_S = 5 * 86400.0
TIMESTAMP_LIFETIME_S = 86400.0
SLO = Slo(latency_ms_p95=50.0, error_rate=0.01, accuracy=0.9)


@dataclass(frozen=True)
class Secret:
    """Signs, and knows its own signature."""

    word: bytes

    def sign(self, payload: bytes) -> bytes:
        return self._mark(payload) + b"\n" + payload

    def open(self, raw: bytes) -> bytes | None:
        """Return the payload of `raw`, or None when this secret did not sign it."""
        mark, _, payload = raw.partition(b"\n")
        return payload if mark == self._mark(payload) else None

    def _mark(self, payload: bytes) -> bytes:
        return blake2b(payload, key=self.word, digest_size=16).hexdigest().encode()


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of one role: TUF's dates, versions and targets, without its format."""

    role: str
    version: int
    expires: float
    targets_version: int = 0
    """In the timestamp: the version of targets that is current."""
    targets: dict[str, tuple[str, int]] = {}


def make_release(
    model: ModelName, number: int, fits: Sequence[Hardware], random: Random, *, word: str = ""
) -> tuple[ReleaseRef, Manifest, dict[Sha256, bytes]]:
    """Return a release with a variant for each of `fits`, and the content of its files and its manifest."""
    contents: dict[str, bytes] = {}
    variants: list[Variant] = []
    for hardware in fits:
        path = f"weights.{hardware.device_class}.bin"
        chunks = random.randint(3, 40) if random.random() < 0.1 else random.randint(3, 10)
        contents[path] = random.randbytes(chunks * 1024 + random.randint(1, 1024))
        variants.append(
            Variant(
                name=hardware.device_class,
                runtime="openvino" if "openvino" in hardware.runtimes else "onnxruntime",
                precision="int8",
                files=(path, "labels.txt"),
                hardware=HardwareMatch(
                    arch=(hardware.arch,),
                    accelerator=(hardware.accelerators[-1],),
                    memory_mb_min=hardware.memory_mb,
                ),
            )
        )
    contents["labels.txt"] = f"labels of {model}".encode() * 60  # The same in every release: fetched once.
    contents["golden.npz"] = random.randbytes(random.randint(1500, 4000))
    described: list[BundleFile] = [
        describe_file(path, content, random.choice((1024, 2048))) for path, content in contents.items()
    ]
    manifest = Manifest(
        model=model,
        version=f"{number}.0.0",
        release=number,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 8)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
        files=tuple(described),
        variants=tuple(variants),
        golden=Golden(file="golden.npz"),
        slo=SLO,
        card=word,
    )
    raw = encode_manifest(manifest)
    ref = ReleaseRef(
        model=model, version=manifest.version, release=number, bundle_sha256=digest(raw), bundle_length=len(raw)
    )
    blobs = {file.sha256: contents[file.path] for file in described}
    blobs[ref.bundle_sha256] = raw
    return ref, manifest, blobs


class MemoryRegistry(Registry):
    """`ports.Registry` for the simulator. It outlives the controller's process."""

    def __init__(self, stage: Stage) -> None:
        random = stage.random("registry")
        self.release_key = Secret(random.randbytes(32))
        self.online_key = Secret(random.randbytes(32))
        self.blobs: dict[Sha256, bytes] = {}
        self.manifests: dict[Sha256, Manifest] = {}
        self.signed: list[Assignment] = []
        """Every assignment that the controller signed, published or not."""
        self.frozen = False
        """The timestamp is not renewed."""
        self._timeline = stage.timeline
        self._random = random
        self._releases: dict[tuple[ModelName, str], ReleaseRef] = {}
        self._targets_version = 0
        self._timestamp: Document | None = None
        self._said: dict[str, str] = {}

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish_release(self, model: ModelName, number: int, fits: Sequence[Hardware]) -> ReleaseRef:
        """Sign a new release into the targets."""
        ref, manifest, blobs = make_release(model, number, fits, self._random)
        self.blobs |= blobs
        self.manifests[ref.bundle_sha256] = manifest
        self._releases[model, ref.version] = ref
        self._targets_version += 1
        targets = {
            target_path(each.model, each.version): (str(each.bundle_sha256), each.bundle_length)
            for _, each in sorted(self._releases.items())
        }
        expires = self._timeline.now + METADATA_LIFETIME_S
        self._say(Document(role="targets", version=self._targets_version, expires=expires, targets=targets))
        self._renew(TIMESTAMP_LIFETIME_S)
        return ref

    def freeze(self, lifetime_s: float) -> None:
        """Let the metadata run out."""
        self.frozen = True
        self._renew(lifetime_s)

    def thaw(self) -> None:
        self.frozen = False
        self._renew(TIMESTAMP_LIFETIME_S)

    def _renew(self, lifetime_s: float) -> None:
        version = 1 if self._timestamp is None else self._timestamp.version + 1
        self._timestamp = Document(
            role="timestamp",
            version=version,
            expires=self._timeline.now + lifetime_s,
            targets_version=self._targets_version,
        )
        self._say(self._timestamp)
        if KEYS_ROLE not in self._said:
            self._say(Document(role=KEYS_ROLE, version=1, expires=self._timeline.now + 10 * METADATA_LIFETIME_S))

    def _say(self, document: Document) -> None:
        self._said[document.role] = self.release_key.sign(msgspec.json.encode(document)).decode()

    # -- ports.Registry ----------------------------------------------------------------------------------------------

    def trust_messages(self) -> Sequence[TrustFiles]:
        timestamp = self._timestamp
        soon = self._timeline.now + TIMESTAMP_LIFETIME_S / 2
        if timestamp is not None and not self.frozen and timestamp.expires < soon:
            self._renew(TIMESTAMP_LIFETIME_S)
        return [TrustFiles(role=role, files={f"{role}.json": text}) for role, text in sorted(self._said.items())]

    def release(self, model: ModelName, version: str) -> ReleaseRef | None:
        return self._releases.get((model, version))

    def releases(self) -> Sequence[ReleaseRef]:
        return list(self._releases.values())

    def manifest(self, bundle: Sha256) -> Manifest | None:
        return self.manifests.get(bundle)

    def sign_assignments(self, assignments: Sequence[Assignment]) -> list[bytes]:
        self.signed += assignments
        return [self.online_key.sign(msgspec.json.encode(assignment)) for assignment in assignments]

    def blob_length(self, sha256: Sha256) -> int | None:
        content = self.blobs.get(sha256)
        return None if content is None else len(content)

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes:
        return self.blobs[sha256][offset : offset + length]
