"""The device's end of the trust chain: TUF metadata in, verified targets and assignment keys out.

    offer ──> candidates (untrusted, in memory, bounded)
                  │ refresh: a `Checker` verifies them against what is trusted
                  v
              trust.json (verified metadata and the view, one file, durable) ──> view, open_assignment

Here is what a device remembers and when it asks; what TUF demands is `trust_check`'s, where that runs is
`trust_process`'s. Whatever fails, `view` goes on telling what was verified last. One thread at a time.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from muster_agent.core.trust import TrustView
from muster_agent.errors import CheckFailed, MetadataIncomplete
from muster_agent.io.trust_state import VERSIONED, Checked, Checker, Envelope, Opened, Question, load, own
from muster_shared import ids
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET, Assignment, AssignmentKeys, parse_keys
from muster_shared.errors import MetadataExpired, MetadataUntrusted, TrustError, WireError
from muster_shared.ids import Sha256
from muster_shared.messages import MESSAGE_BYTES_MAX, TrustFiles

CANDIDATE_BYTES_MAX = 4 * 1024 * 1024  # Of all roles together; beyond it, what was offered longest ago is forgotten.
ROOTS_MAX = 256
RELEASE_PREFIX = "release-"
RETRY_S = 60.0  # After a check that nobody could do: the conductor waits for it, so it is not tried on every message.

_ROOT = "root"
_Answer = TypeVar("_Answer", Checked, Opened)


class TrustClient:
    """TUF on this device, below `folder`, which is its own."""

    def __init__(
        self,
        folder: Path,
        bootstrap_root: bytes,
        clock: Callable[[], datetime],
        checker: Checker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load what was verified before.

        Args:
            bootstrap_root: Root metadata that the device was provisioned with; the chain starts here at every start.
            clock: The time in UTC, aware. Expiry is judged by it.
            checker: Who verifies; None: this very process, which imports tuf for it.
        """
        self._folder = folder
        self._bootstrap = bootstrap_root
        self._bootstrap_sha256 = Sha256(hashlib.sha256(bootstrap_root).hexdigest())
        self._clock = clock
        self._monotonic = monotonic
        self._checker = checker or _this_process()
        self._candidates: dict[str, dict[str, str]] = {}
        self._saved = load(folder)
        self._view = self._restore_view()
        self._unjudged = True  # What is on disk is judged once at each start.
        self._failure: TrustError | None = None
        self._judged_at: datetime | None = None
        self._withheld: dict[str, MetadataExpired] = {}
        self._opened: tuple[bytes, AssignmentKeys, Opened] | None = None
        self._lost: tuple[float, CheckFailed] | None = None

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
            MetadataExpired: past its date, or this device's clock is wrong. Also when what was verified last is past
                its date and what was offered since is refused: nonsense keeps no device from noticing a freeze.
            MetadataReplayed: older than what was seen.
            MetadataUntrusted: lacks signatures, or is not what the chain names.
            DiskFull: what was verified cannot be kept, so it is not used.
            CheckFailed: nobody could verify; it is tried again, but not at once.
        """
        now = self._clock()
        if not self._unjudged:
            if self._failure is not None and not self._may_heal(now):
                raise self._in_force(self._failure, now).with_traceback(None)
            if self._failure is None and self._view is not None and now.timestamp() < self._saved.valid_until:
                return self._view
        try:
            view = self._verify(now)
        except CheckFailed:
            raise
        except TrustError as error:
            self._failure, self._judged_at, self._unjudged = error, now, False
            raise self._in_force(error, now) from error.__cause__
        self._failure, self._unjudged = None, False
        # The rest may be early: a snapshot can arrive before the timestamp that names it.
        self._candidates = {
            role: files
            for role, files in self._candidates.items()
            if not self._is_trusted(TrustFiles(role=role, files=files))
        }
        return view

    def open_assignment(self, raw: bytes) -> Assignment:
        """Return the assignment in `raw`, signed by a key of the last view. The same one again costs nothing.

        Raises:
            MetadataUntrusted: there is no view yet.
            AssignmentForged, WireError: as `muster_shared.assignment.open_signed`.
            CheckFailed: nobody could verify it.
        """
        if self._view is None:
            raise MetadataUntrusted("no trust metadata was verified yet; wait for it, or check the bootstrap root")
        if len(raw) > MESSAGE_BYTES_MAX:
            raise WireError(f"an assignment of {len(raw)} bytes; the limit is {MESSAGE_BYTES_MAX}")
        keys = self._view.keys
        if self._opened is None or self._opened[:2] != (raw, keys):
            self._opened = raw, keys, self._asked(lambda: self._checker.open(Envelope(raw=raw, keys=keys)))
        opened = self._opened[2]
        if opened.failure is not None:
            raise opened.failure.error()
        assert opened.assignment is not None, "an answer is one or the other"
        return opened.assignment

    # -- verifying ---------------------------------------------------------------------------------------------------

    def _verify(self, now: datetime) -> TrustView:
        question = Question(
            folder=str(self._folder),
            bootstrap=self._bootstrap,
            saved=self._saved,
            candidates=self._candidates,
            now=now.timestamp(),
        )
        try:
            checked = self._asked(lambda: self._checker.check(question))
        except CheckFailed:
            self._saved = load(self._folder)  # It may have been kept before it failed.
            raise
        self._saved = checked.saved
        if checked.failure is not None:
            raise checked.failure.error()
        view = self._restore_view()
        if view is None:
            raise AssertionError("a verified state has a view")
        self._view = view
        self._withheld = {role: MetadataExpired(why) for role, why in checked.withheld.items()}
        return view

    def _asked(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask the checker, but not soon after it has failed."""
        if self._lost is not None and self._monotonic() < self._lost[0] + RETRY_S:
            raise self._lost[1].with_traceback(None)
        try:
            answer = ask()
        except CheckFailed as error:
            self._lost = self._monotonic(), error
            raise
        self._lost = None
        return answer

    def _in_force(self, failure: TrustError, now: datetime) -> TrustError:
        """Return why there is no view to go by: `failure`, unless the last view has expired meanwhile."""
        told = isinstance(failure, MetadataExpired | MetadataIncomplete)
        if told or self._view is None or now.timestamp() < self._saved.valid_until:
            return failure
        return MetadataExpired(
            f"what was verified last is past its date, and what was offered since is refused: {failure}"
        )

    def _may_heal(self, now: datetime) -> bool:
        """Return whether the same metadata may be judged otherwise: what has expired is valid in an earlier time."""
        return isinstance(self._failure, MetadataExpired) and self._judged_at is not None and now < self._judged_at

    def _restore_view(self) -> TrustView | None:
        saved = self._saved
        if saved.targets is None or saved.bootstrap != self._bootstrap_sha256:
            return None
        try:
            return TrustView(targets=saved.targets, keys=parse_keys(saved.keys.encode()))
        except WireError:
            return None

    def _is_trusted(self, files: TrustFiles) -> bool:
        """Return whether every offered file is one that is verified already, to the letter."""
        if files.role == KEYS_ROLE:
            return files.files == {KEYS_TARGET: self._saved.keys}
        trusted = self._saved.files
        if files.role == _ROOT:
            return all(trusted.get(f"root_history/{name}") == text for name, text in files.files.items())
        return all(own(trusted, name) == text for name, text in files.files.items())


def _this_process() -> Checker:
    from muster_agent.io.trust_check import Checks  # A device that has it done elsewhere never imports this.

    return Checks()


def _check(files: TrustFiles) -> None:
    """Raise WireError unless `files` are what its role may send."""
    role = ids.name(files.role, "role")
    if not files.files or len(files.files) > (ROOTS_MAX if role == _ROOT else 1):
        raise WireError(f"metadata of {role} in {len(files.files)} files")
    known = role in {"root", "timestamp", "snapshot", "targets", KEYS_ROLE} or role.startswith(RELEASE_PREFIX)
    for name in files.files:
        match = VERSIONED.fullmatch(name)
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
