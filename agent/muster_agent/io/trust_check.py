"""Verifying trust metadata: every rule of TUF is python-tuf's; here are only its transport, its clock and its disk.

ngclient keeps a folder of files that it neither syncs nor writes at once, so it works in a scratch folder, made from
the saved state and read back into it: power may fail at any byte, and versions once seen stay seen.

This imports tuf and cryptography, 10 MB and 0.1 s: a device does so in a process that does not stay (`trust_process`).
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import DelegatedRole, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from muster_agent.core.trust import Target
from muster_agent.errors import DiskFull, MetadataIncomplete
from muster_agent.io.trust_state import (
    CallEnvelope,
    Checked,
    Envelope,
    Opened,
    OpenedCall,
    Question,
    Saved,
    disk,
    failure,
    own,
    save,
)
from muster_shared import ids
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET, open_signed, parse_keys
from muster_shared.call import open_call
from muster_shared.errors import MetadataExpired, MetadataReplayed, MetadataUntrusted, TrustError, WireError
from muster_shared.ids import Sha256
from muster_shared.messages import MESSAGE_BYTES_MAX

ROOTS_MAX = 256

_SCRATCH = "scratch"
ORIGIN = "muster://trust/"  # ngclient wants a URL; nothing is ever resolved.
_CONFIG = UpdaterConfig(
    max_root_rotations=ROOTS_MAX,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=MESSAGE_BYTES_MAX,
    targets_max_length=MESSAGE_BYTES_MAX,
)


class Checks:
    """`trust_state.Checker` in this very process."""

    def check(self, question: Question) -> Checked:
        """Verify what is offered, write what follows to the disk, and return it."""
        try:
            verified, withheld = _verify(question)
        except _Stopped as stopped:
            return _kept(question, stopped.saved, {}, stopped.error)
        except DiskFull as error:
            return Checked(saved=question.saved, withheld={}, failure=failure(error))
        return _kept(question, verified, withheld, None)

    def open(self, envelope: Envelope) -> Opened:
        """Return the assignment if one of the keys signed it."""
        try:
            return Opened(assignment=open_signed(envelope.raw, envelope.keys))
        except (TrustError, WireError) as error:
            return Opened(assignment=None, failure=failure(error))
        except Exception as error:
            # A bug of ours or of a library: it condemns this message, not the process that others are verified by.
            return Opened(assignment=None, failure=failure(WireError(f"not an assignment: {error!r}")))

    def open_call(self, envelope: CallEnvelope) -> OpenedCall:
        """Return the call if one of the keys signed it."""
        try:
            return OpenedCall(call=open_call(envelope.raw, envelope.keys))
        except (TrustError, WireError) as error:
            return OpenedCall(call=None, failure=failure(error))
        except Exception as error:  # As in `open`.
            return OpenedCall(call=None, failure=failure(WireError(f"not a call: {error!r}")))


class _Stopped(Exception):
    """The chain does not hold, and what was verified of it on the way."""

    def __init__(self, error: TrustError, saved: Saved) -> None:
        super().__init__(str(error))
        self.error = error
        self.saved = saved


def _kept(question: Question, saved: Saved, withheld: dict[str, str], error: TrustError | None) -> Checked:
    try:
        if saved != question.saved:
            save(Path(question.folder), saved)
    except DiskFull as full:
        return Checked(saved=question.saved, withheld={}, failure=failure(full))
    return Checked(saved=saved, withheld=withheld, failure=None if error is None else failure(error))


def _verify(question: Question) -> tuple[Saved, dict[str, str]]:
    """Return the state that follows and the roles that have expired. Raises _Stopped, DiskFull."""
    scratch = Path(question.folder) / _SCRATCH
    with disk():
        shutil.rmtree(scratch, ignore_errors=True)
        for name, text in {"root_history/": "", **question.saved.files}.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            if text:
                (scratch / name).write_bytes(text.encode())
    try:
        return _run(scratch, question)
    except TrustError as error:
        # Versions that were verified on the way stay seen, or a replay would pass at the next start.
        seen = msgspec.structs.replace(question.saved, files=_collect(scratch))
        raise _Stopped(error, seen) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(scratch: Path, question: Question) -> tuple[Saved, dict[str, str]]:
    """Let ngclient verify everything; its errors become ours."""
    now = datetime.fromtimestamp(question.now, UTC)
    offered = {name: text for files in question.candidates.values() for name, text in files.items()}
    with in_our_words(now), disk():
        updater = DeviceUpdater(scratch, question.bootstrap, _Offered(offered, question.saved.files), now)
        updater.refresh()
        keys = _verified_keys(updater, question)
        targets, withheld = updater.releases(now)
        kept = {f"{name}.json" for name in ("timestamp", "snapshot", "targets", *updater.loaded, *withheld)}
        files = {
            name: text for name, text in _collect(scratch).items() if name in kept or name.startswith("root_history/")
        }
    verified = Saved(
        bootstrap=Sha256(hashlib.sha256(question.bootstrap).hexdigest()),
        files=files,
        keys=keys,
        targets=targets,
        valid_until=updater.valid_until().timestamp(),
    )
    return verified, withheld


@contextmanager
def in_our_words(now: datetime) -> Iterator[None]:
    """Turn what python-tuf refuses with into what the agent tells apart."""
    try:
        yield
    except ExpiredMetadataError as error:
        raise MetadataExpired(_expired(error, now)) from error
    except BadVersionNumberError as error:
        raise MetadataReplayed(f"{error}; somebody replays old metadata, or a controller was set back") from error
    except DownloadHTTPError as error:
        raise MetadataIncomplete(f"{error} has not arrived yet; wait for it") from error
    except (RepositoryError, DownloadError) as error:
        raise MetadataUntrusted(
            f"trust metadata is refused: {error}; if this lasts, look for a foreign broker or controller"
        ) from error


def _verified_keys(updater: "DeviceUpdater", question: Question) -> str:
    """Return the text of the assignment keys that the offline keys vouch for, as offered or as kept."""
    info = updater.get_targetinfo(KEYS_TARGET)
    if info is None:
        raise MetadataUntrusted(f"the targets metadata does not name {KEYS_TARGET}; publish it with `muster init`")
    for text in (question.candidates.get(KEYS_ROLE, {}).get(KEYS_TARGET, ""), question.saved.keys):
        raw = text.encode()
        try:
            info.verify_length_and_hashes(raw)
        except LengthOrHashMismatchError:
            continue
        try:
            parse_keys(raw)
        except WireError as error:
            raise MetadataUntrusted(f"{error}; sign correct assignment keys") from error
        return text
    raise MetadataIncomplete(f"{KEYS_TARGET} has not arrived yet as it was signed; wait for it")


class _Offered(FetcherInterface):
    """Serves what was offered; failing that, what is trusted already, so that ngclient can judge its date."""

    def __init__(self, candidates: Mapping[str, str], trusted: Mapping[str, str]) -> None:
        self._candidates = candidates
        self._trusted = trusted

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(urlsplit(url).path.removeprefix("/"))
        text = self._candidates.get(name)
        if text is None:
            text = own(self._trusted, name)
        if text is None:
            raise DownloadHTTPError(name, 404)
        return iter((text.encode(),))


class DeviceUpdater(Updater):
    """ngclient's updater with a clock of ours, and a way to ask what it has verified.

    python-tuf 7 offers neither in public: the reference time is an attribute of `_trusted_set`, and `get_targetinfo`
    must be told a name. This class is the one place that reaches in; `test_trust_client` notices when it moves.
    """

    def __init__(self, folder: Path, bootstrap: bytes, fetcher: FetcherInterface, now: datetime) -> None:
        super().__init__(str(folder), ORIGIN, fetcher=fetcher, config=_CONFIG, bootstrap=bootstrap)
        self._trusted_set.reference_time = now
        self.loaded: list[str] = []

    def releases(self, now: datetime) -> tuple[dict[str, Target], dict[str, str]]:
        """Return every target of every release role that has metadata, and the roles that have expired.

        Names come from the verified metadata; what each means is asked of `get_targetinfo`, so that a role speaks only
        for the paths that are delegated to it.
        """
        found: dict[str, Target] = {}
        withheld: dict[str, str] = {}
        for role in self._release_roles():
            try:
                self.get_targetinfo(_probe(role))
                for path in sorted(self._targets(role.name)):
                    info = self.get_targetinfo(path) if role.is_delegated_path(path) else None
                    if info is not None:
                        found[path] = _target(info)
            except ExpiredMetadataError as error:
                withheld[role.name] = _expired(error, now)
                continue
            self.loaded.append(role.name)
        return found, withheld

    def valid_until(self) -> datetime:
        """Return when the first of the loaded metadata expires."""
        return min(signed.expires for signed in self._trusted_set)

    def _release_roles(self) -> list[DelegatedRole]:
        snapshot, delegations = self._trusted_set.snapshot, self._trusted_set.targets.delegations
        roles = (delegations.roles if delegations is not None else None) or {}
        # A model may be delegated before its first release: then the snapshot does not name its role.
        return [role for role in roles.values() if f"{role.name}.json" in snapshot.meta and role.paths]

    def _targets(self, role: str) -> Mapping[str, TargetFile]:
        signed = self._trusted_set[role] if self._trusted_set.contains(role, Targets.type) else None
        return signed.targets if isinstance(signed, Targets) else {}


def _probe(role: DelegatedRole) -> str:
    """Return some path that is delegated to `role`, to make ngclient load it."""
    return (role.paths or [""])[0].replace("*", "0")


def _target(info: TargetFile) -> Target:
    try:
        return Target(sha256=ids.sha256(info.hashes.get("sha256", "")), length=info.length)
    except WireError as error:
        raise MetadataUntrusted(f"{info.path} lacks a SHA-256; sign the release with `muster model sign`") from error


def _expired(error: ExpiredMetadataError, now: datetime) -> str:
    return (
        f"{error} by this device's clock, which says {now:%Y-%m-%d %H:%M} UTC; "
        "if that is wrong set the clock, else see why the controller or its operator has not renewed it"
    )


def _collect(scratch: Path) -> dict[str, str]:
    """Return the metadata that ngclient left in its folder: it writes a file only when it has verified it."""
    found = {path.name: path for path in scratch.glob("*.json") if not path.is_symlink()}
    found |= {f"root_history/{path.name}": path for path in (scratch / "root_history").glob("*.root.json")}
    with disk():
        return {name: path.read_text(encoding="utf-8") for name, path in sorted(found.items())}
