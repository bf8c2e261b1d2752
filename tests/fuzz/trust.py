"""Targets of the trust chain: metadata as a device takes it, forged or signed by whoever has all keys; its state."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from fuzz.target import Target, once
from harness.bundles import write_bundle
from muster_agent.core.trust import TrustView
from muster_agent.errors import DiskFull, MetadataIncomplete
from muster_agent.io import trust_state
from muster_agent.io.trust import TrustClient
from muster_agent.io.trust_check import Checks
from muster_agent.io.trust_state import Checked, Envelope, Opened, Question, Saved
from muster_controller.registry.keys import list_keys, load_signer
from muster_controller.registry.operator import KEYS_FOLDER, init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.errors import TrustError, WireError
from muster_shared.ids import ModelName
from muster_shared.messages import TrustFiles

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODEL = ModelName("digits")
Files = dict[str, dict[str, str]]
"""By role: file names and texts."""


def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class _Genuine:
    """A repository with one release, and every key of it."""

    root: bytes
    files: Files
    signers: tuple[CryptoSigner, ...]
    targets: frozenset[str]


@cache
def _genuine() -> _Genuine:
    folder = _scratch()
    operator, data = folder / "operator", folder / "data"
    offline = init_operator(operator, [MODEL], create_online_keys(data), NOW)
    repository = TufRepository(data)
    repository.accept_offline(offline.root, offline.targets, offline.keys, NOW)
    bundle = write_bundle(folder, MODEL, 1)
    signed = sign_release(operator, bundle, None, NOW)
    repository.accept_release(signed.role, signed.metadata, (bundle / "bundle.json").read_bytes(), NOW)
    own = [load_signer(path) for path in sorted((data / "keys").glob("*.pem"))]
    held = [load_signer(operator / KEYS_FOLDER / f"{key.name}.pem") for key in list_keys(operator / KEYS_FOLDER)]
    files = {message.role: dict(message.files) for message in repository.trust_messages()}
    root = (operator / "metadata/1.root.json").read_bytes()
    return _Genuine(root, files, (*own, *held), frozenset(_device(files, root).targets))


class _Afresh:
    """Verifies for real, and forgets: the next input meets a device that has seen nothing."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved

    def check(self, question: Question) -> Checked:
        shutil.rmtree(question.folder, ignore_errors=True)
        Path(question.folder).mkdir(parents=True)
        return Checks().check(question)

    def open(self, envelope: Envelope) -> Opened:
        return Checks().open(envelope)


@cache
def _device_folder() -> Path:
    return _scratch() / "trust"


def _device(files: Files, root: bytes) -> TrustView:
    """Offer `files` to a new device and return what it believes. Raises what it refuses with."""
    shutil.rmtree(_device_folder(), ignore_errors=True)
    client = TrustClient(_device_folder(), root, lambda: NOW, _Afresh(Saved()), lambda: 0.0)
    refusal: WireError | None = None
    for role, named in files.items():
        try:
            client.offer(TrustFiles(role=role, files=named))
        except WireError as error:
            refusal = error
    try:
        return client.refresh()
    except MetadataIncomplete:
        if refusal is not None:
            raise refusal from None
        raise


def take_forged(data: bytes) -> None:
    """Whatever was changed on the way: nothing is believed that was not signed."""
    files = _files(data)
    if files is None:
        return

    view = _device(files, _genuine().root)

    assert set(view.targets) <= _genuine().targets


def take_signed(data: bytes) -> None:
    """Everything is signed by everybody, and only its content is mad: it is obeyed or refused, and nothing crashes."""
    files = _files(data)
    if files is None:
        return

    view = _device({role: _each(named, _signed) for role, named in files.items()}, _genuine().root)

    for path in view.targets:
        assert isinstance(path, str)


def _each(named: dict[str, str], change: Callable[[str], str]) -> dict[str, str]:
    return {name: change(text) for name, text in named.items()}


def _signed(text: str) -> str:
    """Return metadata with signatures of everybody in place of its own; what is no metadata, as it is."""
    try:
        document = json.loads(text)
        metadata: Metadata[Any] = Metadata.from_dict({"signed": document["signed"], "signatures": []})
        for signer in _genuine().signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes().decode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RepositoryError):
        return text


def _files(data: bytes) -> Files | None:
    """The input as messages brought it: roles, names and texts are text, the rest is the client's to judge."""
    try:
        found = json.loads(data)
        ok = isinstance(found, dict) and all(isinstance(named, dict) for named in found.values())
        if ok and all(isinstance(text, str) for named in found.values() for text in named.values()):
            json.dumps(found, ensure_ascii=False).encode()  # Half a character never comes out of a message.
            return {str(role): dict(named) for role, named in found.items()}
    except (ValueError, RecursionError):
        pass
    return None


@once
def seeds() -> list[bytes]:
    whole = _genuine().files
    without = {role: named for role, named in whole.items() if role != "snapshot"}
    return [json.dumps(whole).encode(), json.dumps(without).encode()]


@once
def open_seeds() -> list[bytes]:
    """As `seeds`, but that snapshot and timestamp name versions alone: what is signed anew has another length."""
    opened = dict(_genuine().files)
    for role in ("snapshot", "timestamp"):
        opened[role] = _each(opened[role], _versions_alone)
    return [json.dumps(opened).encode()]


def _versions_alone(text: str) -> str:
    document = json.loads(text)
    document["signed"]["meta"] = {
        name: {"version": each["version"]} for name, each in document["signed"]["meta"].items()
    }
    return json.dumps(document)


# -- what a device keeps -----------------------------------------------------------------------------------------------


def load_state(data: bytes) -> None:
    """A rotten state is none: it is never an error, and what loads can be kept again."""
    folder = _state_folder()
    for name in (trust_state.STATE_FILE, trust_state.PREVIOUS_FILE):
        (folder / name).unlink(missing_ok=True)
    (folder / trust_state.STATE_FILE).write_bytes(data)

    saved = trust_state.load(folder)

    TrustClient(folder, _genuine().root, lambda: NOW, Checks())
    trust_state.save(folder, saved)
    assert trust_state.load(folder) == saved


@cache
def _state_folder() -> Path:
    folder = _scratch()
    folder.mkdir(exist_ok=True)
    return folder


@once
def state_seeds() -> list[bytes]:
    _device(_genuine().files, _genuine().root)
    return [(_device_folder() / trust_state.STATE_FILE).read_bytes()]


TARGETS = (
    Target("trust-forged", take_forged, seeds, (TrustError, WireError, MetadataIncomplete)),
    Target("trust-signed", take_signed, open_seeds, (TrustError, WireError, MetadataIncomplete)),
    Target("trust-state", load_state, state_seeds, (DiskFull,)),
)
