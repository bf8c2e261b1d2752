"""What callers share with the agent: what is refused, what stays within its bounds, and what cannot kill the agent."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster_agent.serving.shared_memory import (
    RegionError,
    RegionExists,
    RegionGone,
    Regions,
    RegionUnknown,
    map_sealed,
)


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    (tmp_path / "input").write_bytes(bytes(range(100)))
    made = Regions(tmp_path, regions_max=2, region_bytes_max=1000)
    yield made
    made.close()


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def test_a_region_is_read_and_written_where_it_lies(regions: Regions, tmp_path: Path) -> None:
    regions.register("in", "/input", 10, 50)

    read = regions.read("in", 5, 3)
    written = regions.write("in", 48, b"\xff", memoryview(b"\xfe"))

    assert read == bytes([15, 16, 17])
    assert written == 2
    assert (tmp_path / "input").read_bytes()[56:62] == bytes([56, 57, 0xFF, 0xFE, 60, 61])


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (0, 51), (49, 2), (51, 0), (0, -1)])
def test_what_does_not_lie_within_a_region_is_refused(regions: Regions, offset: int, size: int) -> None:
    regions.register("in", "/input", 10, 50)

    with pytest.raises(RegionError, match="do not lie within region 'in'"):
        regions.read("in", offset, size)


@pytest.mark.parametrize("key", ["", "/", "..", "/..", "/a/b", "../input", "/../input", "a\0b", "x" * 300])
def test_a_key_is_one_name_in_one_folder(regions: Regions, key: str) -> None:
    with pytest.raises(RegionError, match="shared memory"):
        regions.register("in", key, 0, 10)


def test_a_link_a_folder_a_pipe_and_nothing_are_no_regions(regions: Regions, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "input")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    for key, reason in {
        "link": "it is a link",
        "folder": "Is a directory",
        "pipe": "no shared memory object",
        "absent": "No such file",
    }.items():
        with pytest.raises(RegionError, match=reason):
            regions.register("in", key, 0, 10)


def test_a_region_larger_than_its_object_is_refused(regions: Regions) -> None:
    with pytest.raises(RegionError, match="ends at 101, but its object has 100 bytes"):
        regions.register("in", "/input", 1, 100)


def test_names_are_unique_and_few(regions: Regions) -> None:
    regions.register("a", "/input", 0, 10)

    with pytest.raises(RegionExists):
        regions.register("a", "/input", 0, 10)
    regions.register("b", "/input", 0, 10)
    with pytest.raises(RegionError, match="2 regions are registered"):
        regions.register("c", "/input", 0, 10)
    regions.unregister("a")
    regions.register("c", "/input", 0, 10)

    assert [region.name for region in regions.status()] == ["b", "c"]


def test_an_unregistered_region_is_unknown_and_its_file_is_closed(regions: Regions) -> None:
    regions.register("in", "/input", 0, 10)
    (region,) = regions.status("in")

    regions.unregister()
    regions.unregister("in")

    with pytest.raises(RegionUnknown, match="'in'"):
        regions.read("in", 0, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(region.descriptor)


def test_a_region_that_its_owner_cut_short_is_gone_and_nothing_worse(regions: Regions, tmp_path: Path) -> None:
    regions.register("in", "/input", 0, 100)
    os.truncate(tmp_path / "input", 20)

    with pytest.raises(RegionGone, match="smaller"):
        regions.read("in", 10, 50)
    with pytest.raises(RegionGone, match="smaller"):
        regions.write("in", 10, bytes(50))


def test_a_file_of_somebody_else_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(bytes(10))
    regions = Regions(tmp_path, may_use=lambda status: status.st_uid == os.getuid() + 1)

    with pytest.raises(RegionError, match="belongs to another user"):
        regions.register("in", "/input", 0, 10)


def test_a_sealed_memfd_is_mapped_without_a_copy() -> None:
    descriptor = memfd(4096)

    memory = map_sealed(descriptor, 4000)
    os.pwrite(descriptor, b"seen", 3990)
    os.close(descriptor)

    assert bytes(memory[3990:3994]) == b"seen"


def test_memory_that_could_shrink_under_the_agent_is_never_mapped(tmp_path: Path) -> None:
    unsealed = memfd(4096, seals=0)
    plain = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT)
    os.ftruncate(plain, 4096)
    pipe, end = os.pipe()

    try:
        for descriptor, reason in ((unsealed, "may shrink"), (plain, "may shrink|no memfd"), (pipe, "no memfd")):
            with pytest.raises(RegionError, match=reason):
                map_sealed(descriptor, 4096)
    finally:
        for descriptor in (unsealed, plain, pipe, end):
            os.close(descriptor)


def test_memory_smaller_than_its_slots_is_refused() -> None:
    descriptor = memfd(4096)

    try:
        with pytest.raises(RegionError, match="has 4096 bytes; its slots need 8192"):
            map_sealed(descriptor, 8192)
    finally:
        os.close(descriptor)
