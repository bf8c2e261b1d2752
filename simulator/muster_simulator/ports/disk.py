"""A disk in memory that forgets, at power loss, what was not synced.

    write_at ─▶ cached ── fsync ──▶ durable          at power loss each unsynced write is kept, lost or torn;
    create, rename, remove ─▶ log ── fsync_folder ──▶ durable     of the unsynced names a prefix of the log is kept

It is an ext4-like disk: names are journalled in order, contents are not. It implements `muster_agent.io.disk.Disk`.
"""

from dataclasses import dataclass, field
from random import Random

from muster_agent.errors import DiskFull, StoreError


@dataclass(eq=False)
class _File:
    cached: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, content: bytes) -> None:
        _put(self.cached, offset, content)
        self.unsynced.append((offset, content))

    def sync(self) -> None:
        self.durable = bytes(self.cached)
        self.unsynced.clear()

    def lose_power(self, random: Random) -> None:
        survived = bytearray(self.durable)
        for offset, content in self.unsynced:
            match random.randrange(3):
                case 0:
                    _put(survived, offset, content)
                case 1:
                    _put(survived, offset, content[: random.randrange(len(content) + 1)])
                case _:
                    pass
        self.cached = survived
        self.sync()


Names = dict[str, _File | None]
"""What one operation did to names; None is gone."""


class MemoryDisk:
    """`Disk` for the simulator and for tests. `full` and `read_only` make it refuse to write."""

    def __init__(self) -> None:
        self.full = False
        self.read_only = False
        self._names: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._log: list[Names] = []

    # -- Disk --------------------------------------------------------------------------------------------------------

    def write_at(self, path: str, offset: int, content: bytes) -> None:
        self._check(path)
        if self.full:
            raise DiskFull(f"no room to write {path}; free some space")
        file = self._names.get(path)
        if file is None:
            file = _File()
            self._rename({path: file})
        file.write(offset, content)

    def read(self, path: str, offset: int, length: int) -> bytes:
        return bytes(self._file(path).cached[offset : offset + length])

    def size(self, path: str) -> int | None:
        file = self._names.get(path)
        return None if file is None else len(file.cached)

    def exists(self, path: str) -> bool:
        return path in self._names

    def fsync(self, path: str) -> None:
        self._check(path)
        self._file(path).sync()

    def fsync_folder(self, path: str) -> None:
        self._check(path)
        touched = [number for number, names in enumerate(self._log) if any(_folder(name) == path for name in names)]
        if touched:  # The log is written in order: what came before is written with it.
            self._make_durable(touched[-1] + 1)

    def rename(self, source: str, target: str) -> None:
        self._check(source)
        self._rename({source: None, target: self._file(source)})

    def remove(self, path: str) -> None:
        self._check(path)
        if path in self._names:
            self._rename({path: None})

    def list(self, folder: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self._names if _folder(path) == folder)

    # -- what happens to a disk --------------------------------------------------------------------------------------

    def lose_power(self, random: Random) -> None:
        """Come back with what was durable, and some of what was not."""
        self._make_durable(random.randint(0, len(self._log)))
        self._log.clear()
        self._names = dict(self._durable)
        for path in sorted(self._names):
            self._names[path].lose_power(random)

    def rot(self, path: str, random: Random) -> None:
        """Flip a bit of the file `path`, in the cache and on the disk."""
        file = self._file(path)
        if file.cached:
            where = random.randrange(len(file.cached))
            file.cached[where] ^= 1 << random.randrange(8)
            file.sync()

    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self._names))

    def peek(self, path: str, *, durable: bool = False) -> bytes | None:
        """Return the content of `path` as a reader sees it, or as it is after power loss at its worst."""
        file = (self._durable if durable else self._names).get(path)
        if file is None:
            return None
        return file.durable if durable else bytes(file.cached)

    # ----------------------------------------------------------------------------------------------------------------

    def _check(self, path: str) -> None:
        if self.read_only:
            raise StoreError(f"{path}: read-only file system")

    def _file(self, path: str) -> _File:
        file = self._names.get(path)
        if file is None:
            raise StoreError(f"{path}: no such file")
        return file

    def _rename(self, names: Names) -> None:
        self._log.append(names)
        _apply(self._names, names)

    def _make_durable(self, count: int) -> None:
        for names in self._log[:count]:
            _apply(self._durable, names)
        del self._log[:count]


def _apply(files: dict[str, _File], names: Names) -> None:
    for path, file in names.items():
        if file is None:
            files.pop(path, None)
        else:
            files[path] = file


def _put(content: bytearray, offset: int, piece: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(piece)] = piece


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
