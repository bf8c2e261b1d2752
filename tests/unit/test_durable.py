"""Files that survive power loss: what is put in place is whole, has its mode, and goes through no link."""

from pathlib import Path

import pytest

from muster_agent.io import durable


def test_what_is_replaced_is_the_new_content_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old and longer")

    durable.replace(path, b"new", 0o600)

    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_where_the_fresh_file_goes_is_removed_and_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not ours")
    (tmp_path / "state.json.new").symlink_to(other)

    durable.replace(tmp_path / "state.json", b"new")

    assert other.read_bytes() == b"not ours"
    assert (tmp_path / "state.json").read_bytes() == b"new"


def test_what_cannot_be_put_in_place_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.mkdir()

    with pytest.raises(OSError, match=r"state\.json"):
        durable.replace(path, b"new")

    assert path.is_dir()
