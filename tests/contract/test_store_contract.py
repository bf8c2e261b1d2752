"""The content store on every disk: what it affirms is whole, whatever was written, damaged or lost with the power."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.errors import DiskFull, StoreDamaged, StoreError
from muster_agent.io.disk import Disk, OsDisk
from muster_agent.io.store import READ_BYTES, ContentStore, blob
from muster_agent.io.views import Views
from muster_agent.ports import Store
from muster_shared.bundle import BundleFile, describe_file, digest
from muster_shared.errors import FileTampered
from muster_simulator.ports.disk import MemoryDisk

CHUNK = 1024


class PowerLost(Exception):
    """The fuse of `FusedDisk` blew."""


class FusedDisk:
    """Passes on to a `MemoryDisk` what changes it until the fuse blows; reading is free."""

    def __init__(self, disk: MemoryDisk, operations_left: int) -> None:
        self._disk = disk
        self._operations_left = operations_left

    def write_at(self, path: str, offset: int, content: bytes) -> None:
        self._spend()
        self._disk.write_at(path, offset, content)

    def fsync(self, path: str) -> None:
        self._spend()
        self._disk.fsync(path)

    def fsync_folder(self, path: str) -> None:
        self._spend()
        self._disk.fsync_folder(path)

    def rename(self, source: str, target: str) -> None:
        self._spend()
        self._disk.rename(source, target)

    def remove(self, path: str) -> None:
        self._spend()
        self._disk.remove(path)

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self._disk.read(path, offset, length)

    def size(self, path: str) -> int | None:
        return self._disk.size(path)

    def exists(self, path: str) -> bool:
        return self._disk.exists(path)

    def list(self, folder: str) -> list[str]:
        return self._disk.list(folder)

    def _spend(self) -> None:
        self._operations_left -= 1
        if self._operations_left < 0:
            raise PowerLost


@pytest.fixture(params=["os", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return OsDisk(tmp_path) if request.param == "os" else MemoryDisk()


@pytest.fixture
def store(disk: Disk) -> Store:
    return ContentStore(disk)


def test_a_file_is_there_only_when_it_is_finished(store: Store) -> None:
    raw, file = some_file(5)

    write(store, file, raw, range(5))
    before = store.has(file.sha256)
    store.finish(file)

    assert not before
    assert store.has(file.sha256)
    assert store.read(file.sha256) == raw
    assert store.verify(file)
    assert store.resume(file) == ()


def test_chunks_may_come_in_any_order(store: Store) -> None:
    raw, file = some_file(7)

    write(store, file, raw, [6, 0, 3, 2, 5, 1, 4])
    store.finish(file)

    assert store.read(file.sha256) == raw


def test_a_partial_file_is_resumed_from_the_chunks_that_verify(store: Store, disk: Disk) -> None:
    raw, file = some_file(6)
    write(store, file, raw, [0, 2, 5])
    disk.write_at(f"parts/{file.sha256}", 2 * CHUNK + 7, b"rot")

    assert ContentStore(disk).resume(file) == (0, 5)


def test_a_partial_file_without_chunk_digests_begins_anew(store: Store, disk: Disk) -> None:
    raw, whole = some_file(2)
    file = BundleFile(path="bundle.json", sha256=whole.sha256, length=whole.length, chunk_bytes=CHUNK)
    disk.write_at(f"parts/{file.sha256}", 0, bytes(9 * CHUNK))

    assert store.resume(file) == ()
    write(store, file, raw, [0, 1])
    store.finish(file)
    assert store.read(file.sha256) == raw


def test_a_file_that_is_not_its_name_is_refused_and_forgotten(store: Store, disk: Disk) -> None:
    raw, file = some_file(3)
    write(store, file, raw[:-1] + bytes([raw[-1] ^ 1]), range(3))

    with pytest.raises(FileTampered) as refused:
        store.finish(file)

    assert refused.value.expected_sha256 == file.sha256
    assert not store.has(file.sha256)
    assert disk.list("parts") == []


def test_a_file_that_was_never_written_cannot_be_finished(store: Store) -> None:
    _, file = some_file(2)

    with pytest.raises((FileTampered, StoreError)):
        store.finish(file)

    assert not store.has(file.sha256)


@pytest.mark.parametrize("damage", [b"X", b""])
def test_a_damaged_file_is_noticed_and_forgotten(store: Store, disk: Disk, damage: bytes) -> None:
    raw, file = some_file(3)
    put(store, file, raw)
    rot(disk, file, damage)

    assert not store.verify(file)
    assert not store.has(file.sha256)


def test_a_damaged_manifest_is_not_read(store: Store, disk: Disk) -> None:
    raw, file = some_file(1)
    put(store, file, raw)
    rot(disk, file, b"X")

    with pytest.raises(StoreDamaged):
        store.read(file.sha256)
    assert not store.has(file.sha256)


def test_a_missing_file_is_no_surprise(store: Store) -> None:
    _, file = some_file(2)

    assert not store.verify(file)
    with pytest.raises(StoreDamaged):
        store.read(file.sha256)
    store.abandon(file.sha256)


def test_what_is_not_kept_is_collected_with_every_left_over(store: Store, disk: Disk) -> None:
    kept, dropped, partial = (some_file(count) for count in (1, 2, 3))
    put(store, kept[1], kept[0])
    put(store, dropped[1], dropped[0])
    write(store, partial[1], partial[0], [0])
    disk.write_at("blobs/half-written.tmp", 0, b"left over")

    store.collect(frozenset({kept[1].sha256}))

    assert disk.list("blobs") == [kept[1].sha256]
    assert disk.list("parts") == []
    assert store.read(kept[1].sha256) == kept[0]


def test_a_kept_partial_file_survives_a_collection(store: Store) -> None:
    raw, file = some_file(3)
    write(store, file, raw, [1])

    store.collect(frozenset({file.sha256}))

    assert store.resume(file) == (1,)


@given(cut=st.integers(0, 40), seed=st.integers(0, 2**32), count=st.integers(1, 6))
@settings(max_examples=400, deadline=None)
def test_power_lost_at_any_operation_leaves_nothing_false(cut: int, seed: int, count: int) -> None:
    rng = random.Random(seed)
    old_raw, old = some_file(3)
    raw, file = some_file(count + 10)
    disk = MemoryDisk()
    put(ContentStore(disk), old, old_raw)
    finished = False
    try:
        put(ContentStore(FusedDisk(disk, cut)), file, raw)
        finished = True
    except PowerLost:
        pass
    disk.lose_power(rng)

    store = ContentStore(disk)
    assert store.read(old.sha256) == old_raw
    if finished:
        assert store.has(file.sha256)
    if store.has(file.sha256):
        assert store.read(file.sha256) == raw
    else:
        here = store.resume(file)
        write(store, file, raw, [index for index in range(len(file.chunks)) if index not in here])
        store.finish(file)
        assert store.read(file.sha256) == raw


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    raw, file = some_file(2)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / file.sha256).symlink_to("/dev/full")

    with pytest.raises(DiskFull):
        ContentStore(OsDisk(tmp_path)).write_chunk(file, 0, raw[:CHUNK])


def test_a_disk_that_fails_otherwise_is_not_called_full(tmp_path: Path) -> None:
    raw, file = some_file(2)
    (tmp_path / "parts" / file.sha256).mkdir(parents=True)

    with pytest.raises(StoreError) as failed:
        ContentStore(OsDisk(tmp_path)).write_chunk(file, 0, raw[:CHUNK])
    assert not isinstance(failed.value, DiskFull)


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path) -> None:
    raw = os.urandom(2 * READ_BYTES + 17)
    file = describe_file("model.onnx", raw, 1024 * 1024)
    store = ContentStore(OsDisk(tmp_path))

    for index in range(len(file.chunks)):
        store.write_chunk(file, index, raw[index * file.chunk_bytes :][: file.chunk_bytes])
    store.finish(file)

    assert (tmp_path / blob(file.sha256)).read_bytes() == raw


def test_a_view_shows_the_files_under_their_manifest_paths(tmp_path: Path) -> None:
    raw, file = some_file(2, "nested/model.onnx")
    disk = OsDisk(tmp_path)
    put(ContentStore(disk), file, raw)
    views, bundle = Views(disk), digest(b"bundle")

    folder = views.make(bundle, [file])
    again = views.make(bundle, [file])
    views.collect(frozenset())

    assert folder == again
    assert not folder.exists()
    assert ContentStore(disk).read(file.sha256) == raw


def test_a_view_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    _, file = some_file(2)

    with pytest.raises(StoreError):
        Views(OsDisk(tmp_path)).make(digest(b"bundle"), [file])


def some_file(count: int, path: str = "model.onnx") -> tuple[bytes, BundleFile]:
    raw = random.Random(count).randbytes(count * CHUNK - 3)
    return raw, describe_file(path, raw, CHUNK)


def write(store: Store, file: BundleFile, raw: bytes, indices: "range | list[int]") -> None:
    for index in indices:
        store.write_chunk(file, index, raw[index * CHUNK : (index + 1) * CHUNK])


def put(store: Store, file: BundleFile, raw: bytes) -> None:
    write(store, file, raw, range(len(file.chunks)))
    store.finish(file)


def rot(disk: Disk, file: BundleFile, damage: bytes) -> None:
    """Change a byte of the whole file, or (with nothing to write) cut it."""
    content = bytearray(disk.read(blob(file.sha256), 0, file.length))
    if damage:
        content[1] ^= damage[0]
    else:
        del content[-1:]
    disk.remove(blob(file.sha256))
    disk.write_at(blob(file.sha256), 0, bytes(content))
