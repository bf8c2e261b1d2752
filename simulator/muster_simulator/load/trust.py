"""One verifying TUF client for many devices: what they all hear is verified once, by the agent's own client.

    device ── offer ──▶ what this device has heard, by digest ──▶ the view of exactly that, if it was verified
                                     └── first to hear it ──▶ TrustClient ── refresh ──▶ view

A device uses a view only when it has itself heard everything that the view was verified from. Its assignment's
signature is checked for each device.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from muster_agent.core.trust import TrustView
from muster_agent.errors import MetadataIncomplete
from muster_agent.io.trust import TrustClient
from muster_shared.assignment import Assignment, open_signed
from muster_shared.bundle import digest
from muster_shared.errors import MetadataUntrusted, TrustError
from muster_shared.ids import Sha256
from muster_shared.messages import TrustFiles, encode

REMEMBERED_MAX = 64  # Views of different generations of metadata; devices are at most a few apart.
JUDGED_AGAIN_S = 60.0  # Metadata that was fresh may expire.

Heard = frozenset[tuple[str, Sha256]]
"""Role and digest of each message."""


@dataclass(frozen=True)
class _Judged:
    at: float
    result: TrustView | TrustError


class SharedTrust:
    """The client and what it found, for the devices of one process. One thread."""

    def __init__(self, folder: Path, bootstrap_root: bytes, clock: Callable[[], float]) -> None:
        self.verified = 0
        """How often metadata was really verified."""
        self._clock = clock
        self._client = TrustClient(folder, bootstrap_root, lambda: datetime.fromtimestamp(clock(), UTC))
        self._offered: dict[str, Sha256] = {}
        self._judged: OrderedDict[Heard, _Judged] = OrderedDict()

    def offer(self, files: TrustFiles, sha256: Sha256) -> None:
        """Take what a device heard. Raises WireError when it is no metadata."""
        if self._offered.get(files.role) != sha256:
            self._client.offer(files)
            self._offered[files.role] = sha256

    def judge(self, heard: Mapping[str, Sha256]) -> TrustView:
        """Return the view of what a device has heard. Raises what `TrustClient.refresh` raises."""
        key: Heard = frozenset(heard.items())
        judged = self._judged.get(key)
        if judged is None or self._clock() >= judged.at + JUDGED_AGAIN_S:
            if dict(heard) == self._offered:
                judged = self._judged[key] = _Judged(self._clock(), self._verify())
            elif judged is None:
                raise MetadataIncomplete("what this device has heard so far was never current; the rest is on its way")
            while len(self._judged) > REMEMBERED_MAX:
                self._judged.popitem(last=False)
        if isinstance(judged.result, TrustError):
            raise judged.result.with_traceback(None)
        return judged.result

    def _verify(self) -> TrustView | TrustError:
        self.verified += 1
        try:
            return self._client.refresh()
        except TrustError as error:
            return error


class DeviceTrust:
    """`ports.Trust` of one device."""

    def __init__(self, shared: SharedTrust) -> None:
        self._shared = shared
        self._heard: dict[str, Sha256] = {}
        self._view: TrustView | None = None

    def offer(self, files: TrustFiles) -> bool:
        sha256 = digest(encode(files))
        if self._heard.get(files.role) == sha256:
            return False
        self._shared.offer(files, sha256)
        self._heard[files.role] = sha256
        return True

    def refresh(self) -> TrustView:
        self._view = self._shared.judge(self._heard)
        return self._view

    def view(self) -> TrustView | None:
        return self._view

    def mixers(self) -> Mapping[str, bytes]:
        """Return the mixers that the offline keys vouch for."""
        return {} if self._view is None else self._view.keys.mixers

    def open_assignment(self, raw: bytes) -> Assignment:
        if self._view is None:
            raise MetadataUntrusted("no trust metadata was verified yet; wait for it, or check the bootstrap root")
        return open_signed(raw, self._view.keys)
