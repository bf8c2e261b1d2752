"""Memory that callers share with the agent, in two kinds: sealed and mapped, or named and copied.

    mapped   a memfd that a frames client passes over its socket: no copy, because its seals forbid to shrink it
    named    a file of /dev/shm that a V2 client made: read and written by `pread` and `pwrite`, never mapped

A caller that shrinks what the agent has mapped would kill the agent (SIGBUS), so only what cannot shrink is mapped.
It knows no model and no protocol. What a caller changes while it is read is that caller's own answer.
"""

import errno
import fcntl
import mmap
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from muster_shared.errors import MusterError

SHM_FOLDER = Path("/dev/shm")
REGIONS_MAX = 256
REGION_BYTES_MAX = 1024 * 1024 * 1024
NAME_CHARACTERS_MAX = 256
_KEY = re.compile(r"/?[^/\0]{1,255}")


class RegionError(MusterError):
    """A region that cannot be used; the message says why."""


class RegionUnknown(RegionError):
    """No region has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no shared memory region {name[:80]!r} is registered; register it first")
        self.name = name


class RegionExists(RegionError):
    """A region of this name is registered already, elsewhere."""

    def __init__(self, name: str) -> None:
        super().__init__(f"shared memory region {name[:80]!r} is registered already; unregister it first")
        self.name = name


class RegionGone(RegionError):
    """The memory is not there any more, or not all of it."""


def map_sealed(descriptor: int, size: int) -> memoryview:
    """Return the first `size` bytes of the memory behind `descriptor`; they stay as long as the view does.

    Args:
        descriptor: A memfd sealed against shrinking. It stays the caller's; the view does not need it.
    Raises:
        RegionError: it is something else, or too small.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        held = os.fstat(descriptor).st_size
        # Huge pages have seals as well, but touching one when none is left is the same signal.
        page_bytes = os.fstatvfs(descriptor).f_bsize
    except OSError as error:
        raise RegionError(f"the region is no memfd ({error.strerror}); make it with memfd_create") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise RegionError("the region may shrink; seal it with F_SEAL_SHRINK before it is passed")
    if page_bytes != mmap.PAGESIZE:
        raise RegionError("the region has huge pages; make it without MFD_HUGETLB")
    if held < size:
        raise RegionError(f"the region has {held} bytes; its slots need {size}")
    try:
        return memoryview(mmap.mmap(descriptor, size))
    except (OSError, ValueError) as error:
        raise RegionError(f"the region cannot be mapped: {error}") from error


@dataclass(frozen=True)
class NamedRegion:
    """One registered region, as V2's status tells it."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int


class Regions:
    """The named regions of V2's system shared memory extension. Not thread-safe: the serving loop's."""

    def __init__(
        self,
        folder: Path = SHM_FOLDER,
        *,
        regions_max: int = REGIONS_MAX,
        region_bytes_max: int = REGION_BYTES_MAX,
        may_use: Callable[[os.stat_result], bool] | None = None,
    ) -> None:
        """
        Args:
            may_use: Whether a file may be used, by its status; None: any that the agent may open.
        """
        self._folder = folder
        self._regions_max = regions_max
        self._region_bytes_max = region_bytes_max
        self._may_use = may_use
        self._regions: dict[str, NamedRegion] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let `name` be `byte_size` bytes from `offset` of the shared memory object `key`, such as `/input_data`.

        Raises:
            RegionExists: the name is taken by another region.
            RegionError: the key, the size or the object cannot be used.
        """
        if not 0 < len(name) <= NAME_CHARACTERS_MAX:
            raise RegionError(f"the name of a region has 1 to {NAME_CHARACTERS_MAX} characters")
        if offset < 0 or not 0 < byte_size <= self._region_bytes_max:
            raise RegionError(
                f"region {name[:80]!r} wants {byte_size} bytes at {offset}; it may have 1 to {self._region_bytes_max}"
            )
        known = self._regions.get(name)
        if known is not None:
            raise RegionExists(name)
        if len(self._regions) >= self._regions_max:
            raise RegionError(f"{self._regions_max} regions are registered; unregister some")
        descriptor = self._open(key)
        try:
            self._check(name, descriptor, offset + byte_size)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = NamedRegion(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str | None = None) -> None:
        """Forget the region `name`, or all; nothing happens when it is not registered."""
        names = list(self._regions) if name is None else [name]
        for each in names:
            region = self._regions.pop(each, None)
            if region is not None:
                os.close(region.descriptor)

    def status(self, name: str | None = None) -> tuple[NamedRegion, ...]:
        """Return the region `name`, or all by name.

        Raises:
            RegionUnknown: it is not registered.
        """
        if name is None:
            return tuple(self._regions[each] for each in sorted(self._regions))
        return (self._get(name),)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` within the region.

        Raises:
            RegionUnknown: it is not registered.
            RegionGone: its object has become smaller.
            RegionError: they do not lie within the region.
        """
        region = self._within(name, offset, size)
        buffer = bytearray(size)
        view, at = memoryview(buffer), region.offset + offset
        while view:
            count = _retried(lambda view=view, at=at: os.preadv(region.descriptor, [view], at))  # type: ignore[misc]
            if not count:
                raise RegionGone(f"region {name[:80]!r} has become smaller than it was; register it again")
            view, at = view[count:], at + count
        return bytes(buffer)

    def write(self, name: str, offset: int, *parts: bytes | memoryview) -> int:
        """Write `parts` one after another from `offset` within the region, and return how many bytes they were.

        Raises:
            RegionUnknown, RegionGone, RegionError: as `read`.
        """
        size = sum(memoryview(part).nbytes for part in parts)
        region = self._within(name, offset, size)
        # A file that shrank would grow again under `pwrite`: the caller reads what it has mapped, not what is new.
        if os.fstat(region.descriptor).st_size < region.offset + offset + size:
            raise RegionGone(f"region {name[:80]!r} has become smaller than it was; register it again")
        at = region.offset + offset
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                count = _retried(lambda view=view, at=at: os.pwrite(region.descriptor, view, at))  # type: ignore[misc]
                view, at = view[count:], at + count
        return size

    def close(self) -> None:
        self.unregister()

    def _get(self, name: str) -> NamedRegion:
        region = self._regions.get(name)
        if region is None:
            raise RegionUnknown(name)
        return region

    def _within(self, name: str, offset: int, size: int) -> NamedRegion:
        region = self._get(name)
        if offset < 0 or size < 0 or offset + size > region.byte_size:
            raise RegionError(
                f"{size} bytes at {offset} do not lie within region {name[:80]!r}, which has {region.byte_size}"
            )
        return region

    def _open(self, key: str) -> int:
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise RegionError(f"shared memory key {key[:80]!r} is not a name such as /input_data")
        path = self._folder / key.removeprefix("/")
        try:
            # NONBLOCK: opening a pipe of that name must not hang the loop.
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise RegionError(f"shared memory {key[:80]!r} cannot be opened: {reason}") from error

    def _check(self, name: str, descriptor: int, end: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RegionError(f"region {name[:80]!r} is no shared memory object")
        if self._may_use is not None and not self._may_use(status):
            raise RegionError(f"region {name[:80]!r} belongs to another user")
        if status.st_size < end:
            raise RegionError(f"region {name[:80]!r} ends at {end}, but its object has {status.st_size} bytes")


def _retried(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError as error:
        raise RegionGone(f"shared memory failed: {error.strerror}") from error
