"""The identity's folder: whatever happens while a set is written, key and certificate fit."""

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from muster_agent.errors import IdentityDamaged, IdentityError
from muster_agent.identity.folder import Credentials, Enrolled, IdentityFolder
from muster_agent.identity.keys import FileKey
from muster_shared.ids import DeviceId, FleetId


def credentials(number: int, root: bytes = b'{"root": 1}') -> Credentials:
    """A set whose every file says which set it is of."""
    enrolled = Enrolled(
        fleet=FleetId("harbour"),
        device=DeviceId("crane-07"),
        broker_url="mqtts://broker:8883",
        device_url="https://controller:8443",
        fingerprint=f"{number:064x}",
        identity_fingerprint="0" * 64,
        granted_at=1.0,
        renew_at=2.0,
        expires_at=3.0,
        labels={"site": "berlin"},
    )
    return Credentials(
        enrolled=enrolled,
        session_key=f"key {number}".encode(),
        certificate=f"crt {number}",
        ca=f"ca {number}",
        root=root,
    )


def read(folder: IdentityFolder) -> set[str]:
    """Return the numbers of the sets that the current files are of."""
    enrolled = folder.current()
    assert enrolled is not None
    texts = (folder.session_key_path.read_text(), folder.certificate_path.read_text(), folder.ca())
    return {text.split()[1] for text in texts} | {str(int(enrolled.fingerprint, 16))}


@pytest.fixture
def folder(tmp_path: Path) -> IdentityFolder:
    return IdentityFolder(tmp_path / "identity")


class PowerFailed(BaseException):
    """Not an Exception: nothing may handle it."""


class _Power:
    """Fails at the n-th operation on files below `root`; an audit hook stays for the life of the process."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.left = 0
        self.seen = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.root is None or not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        if event in ("os.listdir", "os.scandir", "os.chown", "os.chmod"):
            return
        self.seen += 1
        self.left -= 1
        if self.left == 0:
            self.root = None
            raise PowerFailed

    def run(self, root: Path, fails_at: int) -> None:
        self.root, self.left, self.seen = str(root), fails_at, 0


@pytest.fixture(scope="module")
def the_power() -> _Power:
    return _Power()


@pytest.fixture
def power(the_power: _Power) -> Iterator[_Power]:
    yield the_power
    the_power.root = None


def test_a_device_that_is_not_enrolled_has_nothing(folder: IdentityFolder) -> None:
    assert folder.current() is None
    assert folder.root() == b""


def test_a_set_is_current_once_it_is_put_and_the_one_before_is_gone(folder: IdentityFolder) -> None:
    folder.put(credentials(1))

    folder.put(credentials(2))

    assert read(folder) == {"2"}
    assert folder.current() == credentials(2).enrolled
    assert os.listdir(folder.path / "sets") == ["000002"]


def test_every_file_is_for_its_owner_alone(folder: IdentityFolder) -> None:
    folder.put(credentials(1))

    for path in (folder.path, *folder.path.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert path.is_symlink() or mode == (0o700 if path.is_dir() else 0o600), path


def test_wherever_power_fails_key_and_certificate_fit_and_the_next_renewal_works(
    folder: IdentityFolder, power: _Power
) -> None:
    folder.put(credentials(1))
    power.run(folder.path, fails_at=1 << 30)
    folder.put(credentials(2))
    power.root, operations = None, power.seen
    assert operations > 15

    for number, fails_at in enumerate(range(1, operations + 1), start=3):
        power.run(folder.path, fails_at)
        with pytest.raises(PowerFailed):
            folder.put(credentials(number))
        assert len(read(folder)) == 1

        folder.put(credentials(1000 + number))

        assert read(folder) == {str(1000 + number)}
        assert len(os.listdir(folder.path / "sets")) == 1


def test_a_disk_that_is_full_leaves_what_was_current(folder: IdentityFolder) -> None:
    folder.put(credentials(1))
    (folder.path / "sets").chmod(0o500)
    if os.access(folder.path / "sets", os.W_OK):  # Root may write anywhere: a file in the way stops it as well.
        (folder.path / "sets" / "000002").write_text("")
        (folder.path / ".current").mkdir()

    with pytest.raises(IdentityError, match="certificate cannot be written"):
        folder.put(credentials(2))

    assert read(folder) == {"1"}


def test_a_set_without_a_tuf_root_says_so(folder: IdentityFolder) -> None:
    folder.put(credentials(1, root=b""))

    assert folder.root() == b""
    assert not folder.root_path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"v": 1}', b"\xff\xfe"])
def test_a_record_that_does_not_parse_is_damage_and_not_a_device_without_a_certificate(
    folder: IdentityFolder, content: bytes
) -> None:
    folder.put(credentials(1))
    (folder.path / "current" / "enrolment.json").write_bytes(content)

    with pytest.raises(IdentityDamaged, match="enrol again"):
        folder.current()


def test_a_record_of_a_later_format_asks_for_an_upgrade(folder: IdentityFolder) -> None:
    later = credentials(1)
    folder.put(replace(later, enrolled=msgspec.structs.replace(later.enrolled, v=2)))

    with pytest.raises(IdentityDamaged, match="upgrade"):
        folder.current()


def test_a_current_that_leads_nowhere_is_damage(folder: IdentityFolder) -> None:
    folder.make()
    (folder.path / "current").symlink_to("sets/000009")

    with pytest.raises(IdentityDamaged, match="missing"):
        folder.current()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for somebody else")
def test_what_root_writes_belongs_to_whoever_owns_the_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 12345, 12346)
    folder = IdentityFolder(data / "identity")

    FileKey.open(folder, make=True)
    folder.put(credentials(1))
    folder.put(credentials(2))

    for path in (folder.path, *folder.path.rglob("*")):
        found = path.lstat()
        assert path.is_symlink() or (found.st_uid, found.st_gid) == (12345, 12346), path
