"""The device's end of the trust chain: TUF metadata in, verified targets and assignment keys out.

    offer ──> candidates (untrusted, in memory, bounded)
                  │ refresh: tuf.ngclient.Updater over a fetcher that knows only candidates and what is trusted
                  v
              trust.json (verified metadata and the view, one file, durable) ──> view, open_assignment

Every rule of TUF is python-tuf's; here are only its transport, its clock and its disk. ngclient keeps a folder of files
that it neither syncs nor writes at once, so it works in a scratch folder, made from `trust.json` and read back into it:
power may fail at any byte, and versions once seen stay seen. Whatever fails, `view` goes on telling what was verified
last. One thread at a time.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
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
from tuf.api.metadata import DelegatedRole, Root, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from muster_agent.core.trust import Target, TrustView
from muster_agent.errors import DiskFull, MetadataIncomplete
from muster_shared import ids
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET, Assignment, open_signed, parse_keys
from muster_shared.errors import (
    MetadataExpired,
    MetadataReplayed,
    MetadataUntrusted,
    TrustError,
    WireError,
)
from muster_shared.ids import Sha256
from muster_shared.messages import MESSAGE_BYTES_MAX, TrustFiles

STATE_FILE = "trust.json"
PREVIOUS_FILE = "trust.json.previous"  # One state older: used when the newest one rots on its disk.
CANDIDATE_BYTES_MAX = 4 * 1024 * 1024  # Of all roles together; beyond it, what was offered longest ago is forgotten.
ROOTS_MAX = 256
RELEASE_PREFIX = "release-"

_SCRATCH = "scratch"
_ORIGIN = "muster://trust/"  # ngclient wants a URL; nothing is ever resolved.
_CONFIG = UpdaterConfig(
    max_root_rotations=ROOTS_MAX,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=MESSAGE_BYTES_MAX,
    targets_max_length=MESSAGE_BYTES_MAX,
)
_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.([a-z0-9_-]+)\.json")


class _Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `trust.json`."""

    bootstrap: Sha256 = Sha256("")
    """Digest of the root that the view rests on: another root, another fleet."""
    files: dict[str, str] = {}
    """Verified metadata as ngclient names it, such as `root_history/2.root.json`."""
    keys: str = ""
    """Of the target `keys/assignment.json`."""
    targets: dict[str, Target] | None = None
    """Of the view; None before the first."""
    valid_until: float = 0.0


class TrustClient:
    """TUF on this device, below `folder`, which is its own."""

    def __init__(self, folder: Path, bootstrap_root: bytes, clock: Callable[[], datetime]) -> None:
        """Load what was verified before.

        Args:
            bootstrap_root: Root metadata that the device was provisioned with; the chain starts here at every start.
            clock: The time in UTC, aware. Expiry is judged by it.
        """
        self._folder = folder
        self._bootstrap = bootstrap_root
        self._bootstrap_sha256 = Sha256(hashlib.sha256(bootstrap_root).hexdigest())
        self._clock = clock
        self._candidates: dict[str, dict[str, str]] = {}
        self._saved = _load(folder)
        self._view = self._restore_view()
        self._unjudged = True  # What is on disk is judged once at each start.
        self._failure: TrustError | None = None
        self._withheld: dict[str, MetadataExpired] = {}

    def view(self) -> TrustView | None:
        """Return what was last verified, also in an earlier life of the agent; None before the first time."""
        return self._view

    def withheld(self) -> Mapping[str, MetadataExpired]:
        """Return the release roles that have expired: their releases are not in the view, the others are."""
        return dict(self._withheld)

    def offer(self, files: TrustFiles) -> bool:
        """Take metadata of one role, untrusted, in place of what was offered for it; return whether it is news.

        Raises:
            WireError: no such role, a file that is not the role's, or too much; nothing changed.
        """
        _check(files)
        if self._is_trusted(files):
            # Nothing new, unless it takes the place of something that was refused.
            news = self._candidates.pop(files.role, None) is not None
            self._unjudged = self._unjudged or news
            return news
        if self._candidates.get(files.role) == files.files:
            return False
        self._candidates.pop(files.role, None)
        self._candidates[files.role] = dict(files.files)
        while sum(map(_size, self._candidates.values())) > CANDIDATE_BYTES_MAX:
            del self._candidates[next(iter(self._candidates))]
        self._unjudged = True
        return True

    def refresh(self) -> TrustView:
        """Verify what was offered and return the new view; without news this costs nothing.

        Raises:
            MetadataIncomplete: a file that the chain names has not arrived yet.
            MetadataExpired: past its date, or this device's clock is wrong.
            MetadataReplayed: older than what was seen.
            MetadataUntrusted: lacks signatures, or is not what the chain names.
            DiskFull: what was verified cannot be kept, so it is not used.
        """
        now = self._clock()
        if not self._unjudged:
            if self._failure is not None and not isinstance(self._failure, MetadataExpired):
                raise self._failure.with_traceback(None)
            if self._failure is None and self._view is not None and now.timestamp() < self._saved.valid_until:
                return self._view
        try:
            view = self._verify(now)
        except TrustError as error:
            self._failure, self._unjudged = error, False
            raise
        self._failure, self._unjudged = None, False
        # The rest may be early: a snapshot can arrive before the timestamp that names it.
        self._candidates = {
            role: files
            for role, files in self._candidates.items()
            if not self._is_trusted(TrustFiles(role=role, files=files))
        }
        return view

    def open_assignment(self, raw: bytes) -> Assignment:
        """Return the assignment in `raw`, signed by a key of the last view.

        Raises:
            MetadataUntrusted: there is no view yet.
            AssignmentForged, WireError: as `muster_shared.assignment.open_signed`.
        """
        if self._view is None:
            raise MetadataUntrusted("no trust metadata was verified yet; wait for it, or check the bootstrap root")
        return open_signed(raw, self._view.keys)

    # -- verifying ---------------------------------------------------------------------------------------------------

    def _verify(self, now: datetime) -> TrustView:
        scratch = self._folder / _SCRATCH
        with _disk():
            shutil.rmtree(scratch, ignore_errors=True)
            for name, text in {"root_history/": "", **self._saved.files}.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                if text:
                    (scratch / name).write_bytes(text.encode())
        fetcher = _Offered(
            {name: text for files in self._candidates.values() for name, text in files.items()}, self._saved.files
        )
        try:
            verified, withheld = self._run(scratch, fetcher, now)
        except TrustError:
            # Versions that were verified on the way stay seen, or a replay would pass at the next start.
            self._save(msgspec.structs.replace(self._saved, files=_collect(scratch)))
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._save(verified)
        view = self._restore_view()
        if view is None:
            raise AssertionError("a verified state has a view")
        self._view, self._withheld = view, withheld
        return view

    def _run(self, scratch: Path, fetcher: "_Offered", now: datetime) -> tuple[_Saved, dict[str, MetadataExpired]]:
        """Let ngclient verify everything and return the state that follows; its errors become ours."""
        try:
            with _disk():
                updater = _Updater(scratch, self._bootstrap, fetcher, now)
                updater.refresh()
                keys = self._verified_keys(updater)
                targets, withheld = updater.releases(now)
                kept = {f"{name}.json" for name in ("timestamp", "snapshot", "targets", *updater.loaded, *withheld)}
                files = {
                    name: text
                    for name, text in _collect(scratch).items()
                    if name in kept or name.startswith("root_history/")
                }
        except ExpiredMetadataError as error:
            raise _expired(error, now) from error
        except BadVersionNumberError as error:
            raise MetadataReplayed(f"{error}; somebody replays old metadata, or a controller was set back") from error
        except DownloadHTTPError as error:
            raise MetadataIncomplete(f"{error} has not arrived yet; wait for it") from error
        except (RepositoryError, DownloadError) as error:
            raise MetadataUntrusted(
                f"trust metadata is refused: {error}; if this lasts, look for a foreign broker or controller"
            ) from error
        verified = _Saved(
            bootstrap=self._bootstrap_sha256,
            files=files,
            keys=keys,
            targets=targets,
            valid_until=updater.valid_until().timestamp(),
        )
        return verified, withheld

    def _verified_keys(self, updater: "_Updater") -> str:
        """Return the text of the assignment keys that the offline keys vouch for, as offered or as kept."""
        info = updater.get_targetinfo(KEYS_TARGET)
        if info is None:
            raise MetadataUntrusted(f"the targets metadata does not name {KEYS_TARGET}; publish it with `muster init`")
        for text in (self._candidates.get(KEYS_ROLE, {}).get(KEYS_TARGET, ""), self._saved.keys):
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

    # -- disk --------------------------------------------------------------------------------------------------------

    def _restore_view(self) -> TrustView | None:
        saved = self._saved
        if saved.targets is None or saved.bootstrap != self._bootstrap_sha256:
            return None
        try:
            return TrustView(targets=saved.targets, keys=parse_keys(saved.keys.encode()))
        except WireError:
            return None

    def _save(self, saved: _Saved) -> None:
        if saved == self._saved:
            return
        body = msgspec.json.encode(saved)
        with _disk():
            self._folder.mkdir(parents=True, exist_ok=True)
            state, temporary = self._folder / STATE_FILE, self._folder / f"{STATE_FILE}.tmp"
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            if state.exists():
                state.replace(self._folder / PREVIOUS_FILE)
            temporary.replace(state)
            descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._saved = saved

    def _is_trusted(self, files: TrustFiles) -> bool:
        """Return whether every offered file is one that is verified already, to the letter."""
        if files.role == KEYS_ROLE:
            return files.files == {KEYS_TARGET: self._saved.keys}
        trusted = self._saved.files
        if files.role == Root.type:
            return all(trusted.get(f"root_history/{name}") == text for name, text in files.files.items())
        return all(_own(trusted, name) == text for name, text in files.files.items())


class _Offered(FetcherInterface):
    """Serves what was offered; failing that, what is trusted already, so that ngclient can judge its date."""

    def __init__(self, candidates: Mapping[str, str], trusted: Mapping[str, str]) -> None:
        self._candidates = candidates
        self._trusted = trusted

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(urlsplit(url).path.removeprefix("/"))
        text = self._candidates.get(name)
        if text is None:
            text = _own(self._trusted, name)
        if text is None:
            raise DownloadHTTPError(name, 404)
        return iter((text.encode(),))


class _Updater(Updater):
    """ngclient's updater with a clock of ours, and a way to ask what it has verified.

    python-tuf 7 offers neither in public: the reference time is an attribute of `_trusted_set`, and `get_targetinfo`
    must be told a name. This class is the one place that reaches in; `test_trust_client` notices when it moves.
    """

    def __init__(self, folder: Path, bootstrap: bytes, fetcher: FetcherInterface, now: datetime) -> None:
        super().__init__(str(folder), _ORIGIN, fetcher=fetcher, config=_CONFIG, bootstrap=bootstrap)
        self._trusted_set.reference_time = now.astimezone(UTC)
        self.loaded: list[str] = []

    def releases(self, now: datetime) -> tuple[dict[str, Target], dict[str, MetadataExpired]]:
        """Return every target of every release role that has metadata, and the roles that have expired.

        Names come from the verified metadata; what each means is asked of `get_targetinfo`, so that a role speaks only
        for the paths that are delegated to it.
        """
        found: dict[str, Target] = {}
        withheld: dict[str, MetadataExpired] = {}
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


def _expired(error: ExpiredMetadataError, now: datetime) -> MetadataExpired:
    return MetadataExpired(
        f"{error} by this device's clock, which says {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; "
        "if that is wrong set the clock, else see why the controller or its operator has not renewed it"
    )


def _check(files: TrustFiles) -> None:
    """Raise WireError unless `files` are what its role may send."""
    role = ids.name(files.role, "role")
    if not files.files or len(files.files) > (ROOTS_MAX if role == Root.type else 1):
        raise WireError(f"metadata of {role} in {len(files.files)} files")
    known = role in {"root", "timestamp", "snapshot", "targets", KEYS_ROLE} or role.startswith(RELEASE_PREFIX)
    for name in files.files:
        match = _VERSIONED.fullmatch(name)
        if role == "timestamp":
            fits = name == "timestamp.json"
        elif role == KEYS_ROLE:
            fits = name == KEYS_TARGET
        else:
            fits = match is not None and match[2] == role
        if not (known and fits):
            raise WireError(f"{name[:120]!r} is no file of the trust role {role!r}")
    if _size(files.files) > MESSAGE_BYTES_MAX:
        raise WireError(f"metadata of {role} in {_size(files.files)} bytes; the limit is {MESSAGE_BYTES_MAX}")


def _size(files: Mapping[str, str]) -> int:
    try:
        return sum(len(text.encode()) for text in files.values())
    except UnicodeEncodeError as error:
        raise WireError("metadata that is not text") from error


def _own(trusted: Mapping[str, str], name: str) -> str | None:
    """Return the trusted file that the repository calls `name`: `4.targets.json`, without its version in ngclient."""
    match = _VERSIONED.fullmatch(name)
    if match is None:
        return trusted.get(name)
    text = trusted.get(f"{match[2]}.json")
    return text if text is not None and _version(text) == int(match[1]) else None


def _version(text: str) -> int | None:
    try:
        version = json.loads(text)["signed"]["version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def _collect(scratch: Path) -> dict[str, str]:
    """Return the metadata that ngclient left in its folder: it writes a file only when it has verified it."""
    found = {path.name: path for path in scratch.glob("*.json") if not path.is_symlink()}
    found |= {f"root_history/{path.name}": path for path in (scratch / "root_history").glob("*.root.json")}
    with _disk():
        return {name: path.read_text(encoding="utf-8") for name, path in sorted(found.items())}


def _load(folder: Path) -> _Saved:
    """Return the newest state that is whole; an empty one when there is none."""
    for name in (STATE_FILE, PREVIOUS_FILE):
        try:
            checksum, _, body = (folder / name).read_bytes().partition(b"\n")
            if checksum.decode() == hashlib.sha256(body).hexdigest():
                return msgspec.json.decode(body, type=_Saved)
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
            continue
    return _Saved()


@contextmanager
def _disk() -> Iterator[None]:
    """Turn errors of the disk into ours."""
    try:
        yield
    except OSError as error:
        raise DiskFull(f"the trust state cannot be written ({error}); free some space or mend the disk") from error
