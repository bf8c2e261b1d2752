"""A release of the agent itself: a bundle whose files are wheels, signed and published like a model of that name.

    bundle.json        model "muster-agent"; a variant for each architecture names the wheels of that one; and `agent`
    requirements.txt   every wheel, with its hash: what pip installs, and nothing else
    wheels/*.whl
    metadata/          optional: the trust files of the controller, for a device that has not heard of the release

What counts is the digest of `bundle.json`, which the offline keys signed; all other files are checked against it.
An engine would refuse such a bundle: it names no model. `python -m muster_agent.install.wheel_set FOLDER VERSION N`
writes `bundle.json` for a folder that has the rest.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from muster_agent.core.trust import Target
from muster_agent.install.places import InstallError
from muster_shared.bundle import (
    MANIFEST_BYTES_MAX,
    Golden,
    HardwareMatch,
    Manifest,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    parse_manifest,
)
from muster_shared.errors import ManifestInvalid, MusterError, WireError
from muster_shared.ids import ModelName

NAME = ModelName("muster-agent")
MANIFEST = "bundle.json"
REQUIREMENTS = "requirements.txt"
_BLOCK = 1024 * 1024


class UpgradeRefused(InstallError):
    """This wheel set is not installed. The agent that runs is as it was."""


class AgentRelease(msgspec.Struct, frozen=True, kw_only=True):
    """The field `agent` of the manifest."""

    python_min: tuple[int, int]
    python_below: tuple[int, int]
    """The first minor version of Python that it is not for."""


class WheelSet(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest that was parsed, not yet verified."""

    manifest: Manifest
    agent: AgentRelease
    raw: bytes

    @property
    def version(self) -> str:
        return self.manifest.version


class _Extra(msgspec.Struct):
    agent: AgentRelease


def parse(raw: bytes) -> WheelSet:
    """Return the wheel set that `raw` describes. Raises UpgradeRefused."""
    try:
        manifest = parse_manifest(raw)
        agent = msgspec.json.decode(raw, type=_Extra).agent
    except (ManifestInvalid, msgspec.MsgspecError) as error:
        raise UpgradeRefused(f"{MANIFEST} is not that of an agent: {error}") from error
    if manifest.model != NAME:
        raise UpgradeRefused(f"{MANIFEST} is of the model {manifest.model}, not of {NAME}")
    for variant in manifest.variants:
        if REQUIREMENTS not in variant.files or not any(path.endswith(".whl") for path in variant.files):
            raise UpgradeRefused(f"{MANIFEST}: variant {variant.name} lacks {REQUIREMENTS} or wheels")
    return WheelSet(manifest=manifest, agent=agent, raw=raw)


def check_signed(wheel_set: WheelSet, targets: Mapping[str, Target]) -> None:
    """Raise UpgradeRefused unless the offline keys vouch for these very bytes."""
    path = wheel_set.manifest.target
    target = targets.get(path)
    if target is None:
        raise UpgradeRefused(f"{path} is not among the targets that the release keys signed")
    if (target.sha256, target.length) != (digest(wheel_set.raw), len(wheel_set.raw)):
        raise UpgradeRefused(f"{path} is signed with another digest than this folder's {MANIFEST} has")


def fitting(wheel_set: WheelSet, python: tuple[int, int], arch: str) -> Variant:
    """Return the wheels for an interpreter and architecture (as `platform.machine` says). Raises UpgradeRefused."""
    low, below = wheel_set.agent.python_min, wheel_set.agent.python_below
    if not low <= python < below:
        raise UpgradeRefused(
            f"{wheel_set.version} is for Python {_dotted(low)} to before {_dotted(below)}; this is {_dotted(python)}"
        )
    for variant in wheel_set.manifest.variants:
        if not variant.hardware.arch or arch in variant.hardware.arch:
            return variant
    raise UpgradeRefused(f"{wheel_set.version} has no wheels for {arch}")


def copy_verified(wheel_set: WheelSet, variant: Variant, folder: Path, into: Path) -> None:
    """Copy the wheels of `variant`, flat, and hash what was written: what is installed is what was verified.

    Raises:
        UpgradeRefused: a file is missing, or is not the one that was signed.
        OSError: it cannot be written.
    """
    for path in variant.files:
        file = wheel_set.manifest.file(path)
        running, length = hashlib.sha256(), 0
        try:
            source = os.open(folder / path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UpgradeRefused(f"{folder / path} cannot be read: {error.strerror}") from error
        with os.fdopen(source, "rb") as read, (into / Path(path).name).open("xb") as write:
            while length <= file.length and (block := read.read(_BLOCK)):
                running.update(block)
                length += len(block)
                write.write(block)
        if (length, running.hexdigest()) != (file.length, file.sha256):
            raise UpgradeRefused(f"{folder / path} is not the file that was signed; copy the folder again")


def read_manifest(folder: Path) -> bytes:
    """Return the bytes of its manifest. Raises UpgradeRefused."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise UpgradeRefused(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error


# -- making one --------------------------------------------------------------------------------------------------------


def describe(
    folder: Path, version: str, release: int, *, python: tuple[tuple[int, int], tuple[int, int]], arch: str
) -> bytes:
    """Return `bundle.json` for the wheels in `folder` / wheels, all for one architecture.

    Raises:
        UpgradeRefused: something is missing, or the result would not be one.
    """
    paths = [REQUIREMENTS, *sorted(f"wheels/{path.name}" for path in (folder / "wheels").glob("*.whl"))]
    try:
        files = tuple(describe_file(path, (folder / path).read_bytes()) for path in paths)
    except OSError as error:
        raise UpgradeRefused(f"{error.filename} cannot be read: {error.strerror}") from error
    nothing = TensorSpec(name="none", datatype="BYTES", shape=(1,))  # A manifest has one; an agent takes nothing.
    manifest = Manifest(
        model=NAME,
        version=version,
        release=release,
        inputs=(nothing,),
        outputs=(nothing,),
        files=files,
        variants=(
            Variant(
                name=f"linux-{arch}".replace("_", "-"),
                runtime="onnxruntime",
                precision="fp32",
                files=tuple(paths),
                hardware=HardwareMatch(arch=(arch,)),
            ),
        ),
        golden=Golden(file=REQUIREMENTS),
        card=f"# The agent {version}\n\nInstalled by `muster-agent upgrade`; it is no model, do not roll it out.",
    )
    document = msgspec.json.decode(encode_manifest(manifest))
    document["agent"] = msgspec.to_builtins(AgentRelease(python_min=python[0], python_below=python[1]))
    raw = msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1)
    parse(raw)
    return raw


def main() -> int:
    if len(sys.argv) != 4 or not sys.argv[3].isdigit():
        print("usage: python -m muster_agent.install.wheel_set FOLDER VERSION RELEASE", file=sys.stderr)
        return 2
    folder, this = Path(sys.argv[1]), sys.version_info[:2]
    try:
        raw = describe(
            folder, sys.argv[2], int(sys.argv[3]), python=(this, (this[0], this[1] + 1)), arch=platform.machine()
        )
    except (MusterError, WireError) as error:
        print(str(error), file=sys.stderr)
        return 1
    (folder / MANIFEST).write_bytes(raw)
    return 0


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


if __name__ == "__main__":
    sys.exit(main())
