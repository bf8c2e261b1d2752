"""The ring of outliers: inputs unlike the reference, kept for a person on site, encrypted so that only he can read.

    meter ── keep: one a second, copied ──▶ one worker ── HPKE to the recipient ──▶ outliers/00000042.sealed
    `muster-agent outliers export` with the private key ──▶ .npz

Off unless `metrics.outliers` names a recipient. The agent has the public half only: what it wrote it cannot read back,
and nor can who steals the disk. Nothing here is ever sent. The ring is bounded in entries and bytes; the oldest give
way. A full disk costs the entry, nothing else.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_shared.undecodable import UNDECODABLE

FOLDER: Final = "outliers"
ENTRY_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of the inputs of one entry; larger ones are not kept."""
GAP_S: Final = 1.0
WAITING_MAX: Final = 4
_SUFFIX: Final = ".sealed"
_MIB: Final = 1024 * 1024
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_INFO: Final = b"muster outlier v1"
_PLAIN_KINDS: Final = "biufc"

log = structlog.get_logger()


class OutlierUnreadable(MusterError):
    """An entry of the ring that does not open with this key, or is damaged. Use the key of `metrics.outliers`."""


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    content: bytes


class Outlier(msgspec.Struct, frozen=True):
    """One entry, opened."""

    at: float
    model: ModelName
    version: str
    reason: str
    inputs: dict[str, _Tensor]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the inputs as they came. Raises OutlierUnreadable: they are not what they say."""
        try:
            return {
                name: np.frombuffer(tensor.content, np.dtype(tensor.dtype)).reshape(tensor.shape)
                for name, tensor in self.inputs.items()
            }
        except (TypeError, ValueError) as error:
            raise OutlierUnreadable("an entry whose inputs are not arrays") from error


class OutlierRing:
    """`samples.Keeper` in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        public_key: bytes,
        *,
        count: int,
        mib: int,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            public_key: X25519, 32 raw bytes, of who may read.
        """
        self.kept = 0
        self.missed = 0
        """Too large, of strings, or the disk was full or slow. Those within the second are not counted."""
        self._folder = folder
        self._public = X25519PublicKey.from_public_bytes(public_key)
        self._count = count
        self._bytes_max = mib * _MIB
        self._clock = clock
        self._monotonic = monotonic
        self._next_at = 0.0
        self._number: int | None = None
        self._failing = False
        self._room = threading.Semaphore(WAITING_MAX)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outliers")

    def keep(self, model: ModelName, version: str, inputs: Mapping[str, npt.NDArray[np.generic]], reason: str) -> None:
        """Copy `inputs`, of any shape, unless one was kept within the last second. It neither waits nor raises.

        Args:
            reason: One of INPUTS: `out_of_range`, `outlier`, `not_finite`.
        """
        now = self._monotonic()
        if now < self._next_at:
            return
        self._next_at = now + GAP_S
        size = sum(array.nbytes for array in inputs.values())
        if size > ENTRY_BYTES_MAX or any(array.dtype.kind not in _PLAIN_KINDS for array in inputs.values()):
            self.missed += 1
            return
        if not self._room.acquire(blocking=False):
            self.missed += 1
            return
        entry = Outlier(
            self._clock(),
            model,
            version,
            reason,
            {name: _Tensor(array.dtype.str, array.shape, array.tobytes()) for name, array in inputs.items()},
        )
        try:
            self._worker.submit(self._write, entry)
        except RuntimeError:  # It is closed.
            self._room.release()

    def close(self) -> None:
        """Write what waits, and end."""
        self._worker.shutdown(wait=True)

    def _write(self, entry: Outlier) -> None:
        try:
            sealed = _SUITE.encrypt(msgspec.msgpack.encode(entry), self._public, _INFO)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._number is None:
                self._number = max((int(path.stem) for path in entries(self._folder)), default=0)
            self._make_room(len(sealed))
            self._number += 1
            path = self._folder / f"{self._number:08d}{_SUFFIX}"
            fresh = path.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_bytes(sealed)
            fresh.replace(path)
        except (OSError, ValueError) as error:  # A key may be 32 bytes and no point.
            self.missed += 1
            if not self._failing:
                log.warning("outlier_not_kept", error=str(error))
            self._failing = True
        else:
            self.kept += 1
            self._failing = False
        finally:
            self._room.release()

    def _make_room(self, more_bytes: int) -> None:
        """Remove the oldest, so that one of `more_bytes` fits."""
        there = sorted(entries(self._folder))
        sizes = [path.stat().st_size for path in there]
        total = sum(sizes) + more_bytes
        while there and (len(there) >= self._count or total > self._bytes_max):
            there.pop(0).unlink(missing_ok=True)
            total -= sizes.pop(0)


def entries(folder: Path) -> Iterator[Path]:
    """Yield the files of a ring; none where there is none."""
    for path in folder.glob(f"*{_SUFFIX}"):
        if path.stem.isascii() and path.stem.isdigit():
            yield path


def open_entry(raw: bytes, private: X25519PrivateKey) -> Outlier:
    """Return what is in the bytes of one file. Raises OutlierUnreadable."""
    try:
        return msgspec.msgpack.decode(_SUITE.decrypt(raw, private, _INFO), type=Outlier)
    except (InvalidTag, ValueError) as error:
        raise OutlierUnreadable("it does not open with this key") from error
    except UNDECODABLE as error:
        raise OutlierUnreadable("it is no outlier") from error
