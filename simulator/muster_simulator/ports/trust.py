"""Trust in memory: the rules of TUF (signed, newer, complete, in date) on documents that are not TUF's.

What was verified survives power loss; what was merely offered does not. Implements `muster_agent.ports.Trust`.
"""

from collections.abc import Callable

import msgspec

from muster_agent.core.trust import Target, TrustView
from muster_agent.errors import MetadataIncomplete
from muster_agent.ports import Trust
from muster_shared import assignment
from muster_shared.assignment import KEYS_ROLE, Assignment, AssignmentKeys
from muster_shared.errors import (
    AssignmentForged,
    MetadataExpired,
    MetadataReplayed,
    MetadataUntrusted,
    TrustError,
    WireError,
)
from muster_shared.ids import Sha256
from muster_shared.messages import TrustFiles
from muster_simulator.ports.registry import Document, Secret

ROLES = ("timestamp", "targets", KEYS_ROLE)


class MemoryTrust(Trust):
    """`Trust` for one device."""

    def __init__(self, release_key: Secret, online_key: Secret, clock: Callable[[], float]) -> None:
        self._release_key = release_key
        self._online_key = online_key
        self._clock = clock
        self._trusted: dict[str, Document] = {}
        self._texts: dict[str, str] = {}
        self._offered: dict[str, str] = {}
        self._view: TrustView | None = None

    def restart(self) -> None:
        self._offered.clear()

    def offer(self, files: TrustFiles) -> bool:
        if files.role not in ROLES or len(files.files) != 1:
            raise WireError(f"metadata of {files.role[:80]!r} in {len(files.files)} files")
        (text,) = files.files.values()
        if text in (self._texts.get(files.role), self._offered.get(files.role)):
            return False
        self._offered[files.role] = text
        return True

    def refresh(self) -> TrustView:
        problem: TrustError | None = None
        for role in ROLES:
            try:
                self._take(role)
            except MetadataIncomplete:
                raise
            except TrustError as error:
                self._offered.pop(role, None)
                problem = problem or error
        if problem is not None:
            raise problem
        timestamp = self._trusted.get("timestamp")
        targets = self._trusted.get("targets")
        if timestamp is None or targets is None or KEYS_ROLE not in self._trusted:
            raise MetadataIncomplete("some role has not arrived yet")
        if targets.version != timestamp.targets_version:
            raise MetadataIncomplete(f"targets {timestamp.targets_version} have not arrived yet")
        if self._view is None:
            self._view = TrustView(
                targets={path: Target(Sha256(sha256), length) for path, (sha256, length) in targets.targets.items()},
                keys=AssignmentKeys(keys={}),
            )
        for document in self._trusted.values():
            if document.expires <= self._clock():
                raise MetadataExpired(f"{document.role} {document.version} is past its date")
        return self._view

    def view(self) -> TrustView | None:
        return self._view

    def open_assignment(self, raw: bytes) -> Assignment:
        payload = self._online_key.open(raw)
        if payload is None:
            raise AssignmentForged("no trusted assignment key signed this assignment")
        return assignment.parse(payload)

    def _take(self, role: str) -> None:
        """Let what was offered for `role` become what is trusted, if it may."""
        text = self._offered.get(role)
        if text is None:
            return
        payload = self._release_key.open(text.encode())
        if payload is None:
            raise MetadataUntrusted(f"{role} is not signed")
        document = msgspec.json.decode(payload, type=Document)
        if document.role != role:
            raise MetadataUntrusted(f"{role} is signed as {document.role}")
        trusted = self._trusted.get(role)
        if trusted is not None and document.version < trusted.version:
            raise MetadataReplayed(f"{role} {document.version}, already at {trusted.version}")
        if role == "targets":
            timestamp = self._trusted.get("timestamp")
            if timestamp is None or document.version > timestamp.targets_version:
                raise MetadataIncomplete(f"targets {document.version} came before the timestamp that names them")
            if document.version < timestamp.targets_version:
                raise MetadataReplayed(f"targets {document.version}, but {timestamp.targets_version} are current")
            self._view = None
        self._trusted[role] = document
        self._texts[role] = text
        del self._offered[role]
