"""The device's update client against repositories that misbehave, through TUF's conformance protocol.

The cases are those of the TUF specification (sections 5.3 to 5.7) and of the public suite. One process answers them
all; each case has a repository, a folder and a clock of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from conformance.repository import LATER, NOW, Repository, serving

CLIENT = (sys.executable, "-m", "conformance.client")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
DAY = timedelta(days=1)


@dataclass
class Line:
    """The process that answers: commands in, exit codes out."""

    to: IO[str]
    back: IO[str]

    def run(self, *arguments: object) -> int:
        self.to.write(json.dumps([str(each) for each in arguments]) + "\n")
        self.to.flush()
        return int(self.back.readline())


@dataclass
class Device:
    """The client under test, and the repository that it knows."""

    line: Line
    folder: Path
    url: str
    repository: Repository

    def init(self) -> bool:
        root = self.folder.parent / "trusted_root.json"
        root.write_bytes(self.repository.served["1.root.json"])
        return self.line.run("--metadata-dir", self.folder, "--metadata-url", self.url, "init", root) == 0

    def refresh(self, at: datetime = NOW) -> bool:
        return self._run(at, "refresh")

    def download(self, path: str, at: datetime = NOW) -> bool:
        where = ("--target-name", path, "--target-dir", self.targets, "--target-base-url", f"{self.url}/targets")
        self.targets.mkdir(exist_ok=True)
        return self._run(at, *where, "download")

    def _run(self, at: datetime, *arguments: object) -> bool:
        common = ("--metadata-dir", self.folder, "--metadata-url", self.url, "--time", at.isoformat())
        return self.line.run(*common, *arguments) == 0

    @property
    def targets(self) -> Path:
        return self.folder.parent / "targets"

    @property
    def contents(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.targets.iterdir())

    def version(self, role: str) -> int | None:
        """Return which version of `role` the device trusts."""
        path = self.folder / f"{role}.json"
        return Metadata.from_bytes(path.read_bytes()).signed.version if path.exists() else None


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    with subprocess.Popen(
        [*CLIENT, "batch"], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Line(process.stdin, process.stdout)
        process.stdin.close()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, dict[str, Repository]]]:
    with serving() as served:
        yield served


def device_of(repository: Repository, line: Line, server: tuple[str, dict[str, Repository]], folder: Path) -> Device:
    url, repositories = server
    name = f"r{len(repositories)}"
    repositories[name] = repository
    device = Device(line, folder / "metadata", f"{url}/{name}", repository)
    assert device.init()
    return device


@pytest.fixture
def device(line: Line, server: tuple[str, dict[str, Repository]], tmp_path: Path) -> Device:
    return device_of(Repository(), line, server, tmp_path)


@pytest.fixture
def hashed(line: Line, server: tuple[str, dict[str, Repository]], tmp_path: Path) -> Device:
    """A device of a repository that says lengths and hashes of its metadata."""
    return device_of(Repository(hashes=True), line, server, tmp_path)


@pytest.fixture(params=["versions", "hashes"])
def either(
    request: pytest.FixtureRequest, line: Line, server: tuple[str, dict[str, Repository]], tmp_path: Path
) -> Device:
    return device_of(Repository(hashes=request.param == "hashes"), line, server, tmp_path)


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_each_command_is_a_process_with_an_exit_code(server: tuple[str, dict[str, Repository]], tmp_path: Path) -> None:
    url, repositories = server
    repository = repositories["alone"] = Repository()
    content = repository.add_target("a/b.txt", b"hello")
    repository.publish()
    root = tmp_path / "root.json"
    root.write_bytes(repository.served["1.root.json"])
    common = (*CLIENT, "--metadata-dir", str(tmp_path / "m"), "--metadata-url", f"{url}/alone")
    target = ("--target-dir", str(tmp_path), "--target-base-url", f"{url}/alone/targets", "--time", NOW.isoformat())

    def code(*arguments: str) -> int:
        return subprocess.run([*common, *arguments], env=ENVIRONMENT, capture_output=True, timeout=60).returncode

    assert code("init", str(root)) == 0
    assert repository.asked == []
    assert code("--target-name", "a/b.txt", *target, "download") == 0
    assert (tmp_path / "a%2Fb.txt").read_bytes() == b"hello"
    assert content.length == 5
    assert code("--target-name", "a/c.txt", *target, "download") == 1


def test_a_refresh_asks_for_each_role_once_and_keeps_them_without_versions(device: Device) -> None:
    assert device.refresh()

    assert device.repository.metadata_asked == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert [device.version(role) for role in ("root", "timestamp", "snapshot", "targets")] == [1, 1, 1, 1]


def test_a_second_refresh_asks_for_nothing_that_did_not_change(device: Device) -> None:
    device.refresh()
    device.repository.asked.clear()

    assert device.refresh()

    assert device.repository.metadata_asked == ["2.root.json", "timestamp.json"]


def test_a_download_refreshes_even_when_it_fails(device: Device) -> None:
    assert not device.download("nowhere")

    assert device.version("targets") == 1


def test_a_root_that_nobody_signed_is_no_beginning(device: Device) -> None:
    device.repository.served["1.root.json"] = device.repository._signed(device.repository.root, [])
    device.init()

    assert not device.refresh()

    assert device.repository.asked == []


def test_fields_that_nobody_knows_are_signed_and_carried_along(device: Device) -> None:
    device.repository.root.unrecognized_fields["more"] = {"a": 1}
    device.repository.targets.unrecognized_fields["more"] = [None]
    device.repository.publish_root()
    device.repository.publish()

    assert device.refresh()

    assert device.version("root") == 2


def test_a_repository_without_consistent_snapshots_is_read_by_plain_names(
    line: Line, server: tuple[str, dict[str, Repository]], tmp_path: Path
) -> None:
    device = device_of(Repository(consistent=False), line, server, tmp_path)
    device.repository.add_target("a", b"plain")
    device.repository.publish()

    assert device.download("a")

    assert device.repository.asked == ["2.root.json", "timestamp.json", "snapshot.json", "targets.json", "targets/a"]


# -- replays -----------------------------------------------------------------------------------------------------------


def test_an_older_timestamp_is_refused(device: Device) -> None:
    old = device.repository.served["timestamp.json"]
    device.repository.publish()
    assert device.refresh()
    device.repository.served["timestamp.json"] = old

    assert not device.refresh()

    assert device.version("timestamp") == 2


def test_another_timestamp_of_the_same_version_changes_nothing(device: Device) -> None:
    assert device.refresh()
    device.repository.timestamp.snapshot_meta = MetaFile(100)
    device.repository.put("timestamp", device.repository.timestamp)

    assert device.refresh()

    assert device.version("snapshot") == 1
    assert Metadata.from_file(str(device.folder / "timestamp.json")).signed.snapshot_meta.version == 1


def test_an_older_snapshot_under_a_newer_timestamp_is_refused(either: Device) -> None:
    either.repository.publish()
    assert either.refresh()
    either.repository.snapshot.version = 1
    either.repository.put("snapshot", either.repository.snapshot)
    either.repository.publish(targets=False, snapshot=False)

    assert not either.refresh()

    assert (either.version("timestamp"), either.version("snapshot")) == (2, 2)


def test_older_targets_in_a_newer_snapshot_are_refused(either: Device) -> None:
    either.repository.publish()
    assert either.refresh()
    either.repository.targets.version = 1
    either.repository.put("targets", either.repository.targets)
    either.repository.publish(targets=False)

    assert not either.refresh()

    assert either.version("targets") == 2


def test_a_snapshot_that_forgets_the_targets_is_refused(device: Device) -> None:
    assert device.refresh()
    del device.repository.snapshot.meta["targets.json"]
    device.repository.publish(targets=False)

    assert not device.refresh()


def test_an_older_root_cannot_follow(device: Device) -> None:
    device.repository.publish_root()
    assert device.refresh()
    device.repository.served["3.root.json"] = device.repository.served["1.root.json"]

    assert not device.refresh()

    assert device.version("root") == 2


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_version_run_ahead_is_recovered_by_new_keys(device: Device, role: str) -> None:
    repository = device.repository
    document = {"timestamp": repository.timestamp, "snapshot": repository.snapshot, "targets": repository.targets}[role]
    document.version = 90_000
    repository.publish()
    assert device.refresh()
    assert device.version(role) == 90_001

    for rotated in {"timestamp": ("timestamp",), "snapshot": ("snapshot", "timestamp"), "targets": ("snapshot",)}[role]:
        repository.rotate(rotated)
    document.version = 1
    repository.publish_root()
    repository.publish()

    assert device.refresh()
    assert device.version(role) == 2


# -- dates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_what_has_expired_is_refused(device: Device, role: str) -> None:
    repository = device.repository
    getattr(repository, role).expires = NOW - DAY
    repository.publish_root()
    repository.publish()

    assert not device.refresh()


def test_metadata_that_was_valid_once_expires_on_the_device(device: Device) -> None:
    assert device.refresh()

    assert not device.refresh(LATER + DAY)
    assert device.refresh(LATER - DAY)


def test_an_expired_root_is_of_use_for_the_next_one(device: Device) -> None:
    device.repository.root.expires = NOW - DAY
    device.repository.publish_root()
    device.repository.root.expires = LATER
    device.repository.publish_root()

    assert device.refresh()

    assert device.version("root") == 3


def test_an_expired_timestamp_that_was_seen_still_keeps_replays_out(device: Device) -> None:
    device.repository.publish()
    device.repository.publish()
    assert device.refresh()
    device.repository.timestamp.version = 1
    device.repository.timestamp.expires = LATER + 30 * DAY
    device.repository.publish(targets=False, snapshot=False)

    assert not device.refresh(LATER + DAY)

    assert device.version("timestamp") == 3


# -- signatures and keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_a_stranger_signed_is_refused(device: Device, role: str) -> None:
    device.repository.signers[role] = [CryptoSigner.generate_ed25519()]
    device.repository.publish()

    assert not device.refresh()

    assert device.version(role) is None


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_too_few_signatures_are_refused(device: Device, role: str) -> None:
    device.repository.root.roles[role].threshold = 2
    device.repository.publish_root()
    device.repository.publish()

    assert not device.refresh()


def test_enough_signatures_of_different_keys_are_taken(device: Device) -> None:
    for role in ("root", "timestamp", "snapshot", "targets"):
        device.repository.add_key(role)
        device.repository.root.roles[role].threshold = 2
    device.repository.publish_root()
    device.repository.publish()

    assert device.refresh()


def test_one_key_that_signs_twice_counts_once(device: Device) -> None:
    device.repository.root.roles["timestamp"].threshold = 2
    device.repository.publish_root()
    device.repository.publish()
    document = json.loads(device.repository.served["timestamp.json"])
    document["signatures"] *= 2
    device.repository.served["timestamp.json"] = json.dumps(document).encode()

    assert not device.refresh()


def test_one_key_that_is_listed_twice_counts_once(device: Device) -> None:
    role = device.repository.root.roles["timestamp"]
    role.keyids.append(role.keyids[0])
    role.threshold = 2
    device.repository.root.version += 1
    device.repository.served["2.root.json"] = device.repository._signed(
        device.repository.root, device.repository.signers["root"]
    )

    assert not device.refresh()


def test_a_root_needs_the_keys_of_the_one_before(device: Device) -> None:
    device.repository.rotate("root")
    device.repository.publish_root()

    assert not device.refresh()

    assert device.version("root") == 1


def test_a_root_needs_its_own_keys_too(device: Device) -> None:
    before = list(device.repository.signers["root"])
    device.repository.rotate("root")
    device.repository.signers["root"] = []
    device.repository.publish_root(also=before)

    assert not device.refresh()


def test_roots_are_followed_one_by_one(device: Device) -> None:
    for _ in range(12):
        before = list(device.repository.signers["root"])
        device.repository.rotate("root")
        device.repository.publish_root(also=before)

    assert device.refresh()

    assert device.version("root") == 13


def test_a_root_that_is_left_out_ends_the_chain(device: Device) -> None:
    for _ in range(3):
        device.repository.publish_root()
    del device.repository.served["3.root.json"]

    assert device.refresh()

    assert device.version("root") == 2


def test_no_more_roots_are_followed_than_the_limit_however_often_it_asks(device: Device) -> None:
    """python-tuf counts from the root that the device was provisioned with: 256 ceremonies later it needs another."""
    for _ in range(260):
        device.repository.publish_root()

    assert device.refresh()
    assert device.refresh()

    assert device.version("root") == 257


def test_a_role_whose_keys_are_rotated_is_refused_under_the_old_ones(device: Device) -> None:
    assert device.refresh()
    old = list(device.repository.signers["snapshot"])
    device.repository.rotate("snapshot")
    device.repository.publish_root()
    device.repository.signers["snapshot"] = old
    device.repository.publish()

    assert not device.refresh()


# -- lengths, hashes, formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_metadata_of_other_bytes_than_were_announced_is_refused(hashed: Device, role: str) -> None:
    name = f"1.{role}.json"
    hashed.repository.served[name] += b"\n"

    assert not hashed.refresh()

    assert hashed.version(role) is None


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_metadata_of_another_version_than_was_announced_is_refused(device: Device, role: str) -> None:
    document = {"snapshot": device.repository.snapshot, "targets": device.repository.targets}[role]
    document.version = 2
    device.repository.served[f"1.{role}.json"] = device.repository._signed(document, device.repository.signers[role])

    assert not device.refresh()


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_endless_metadata_is_cut(device: Device, name: str) -> None:
    device.repository.served[name] = b" " * (1 << 20) + device.repository.served.get(name, b"{}")

    assert not device.refresh()


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_what_is_no_metadata_is_refused(device: Device, name: str) -> None:
    device.repository.served[name] = b'{"signed": {"_type": "root"}, "signatures": []}'

    assert not device.refresh()


@pytest.mark.parametrize("version", ["2.0.0", "0.9", "", "x"])
@pytest.mark.parametrize("role", ["root", "timestamp", "targets"])
def test_a_specification_that_it_does_not_know_is_refused(device: Device, role: str, version: str) -> None:
    getattr(device.repository, role).spec_version = version
    device.repository.publish_root()
    device.repository.publish()

    assert not device.refresh()


def test_one_role_cannot_stand_for_another(device: Device) -> None:
    device.repository.root.roles["snapshot"] = device.repository.root.roles["targets"]
    device.repository.publish_root()
    device.repository.served["1.snapshot.json"] = device.repository.served["1.targets.json"]

    assert not device.refresh()


# -- targets and delegations -------------------------------------------------------------------------------------------


def test_a_target_is_fetched_once_and_again_when_it_changed(device: Device) -> None:
    device.repository.add_target("a/model.onnx", b"one")
    device.repository.publish()
    assert device.download("a/model.onnx")
    assert device.download("a/model.onnx")
    assert sum(name.startswith("targets/") for name in device.repository.asked) == 1

    device.repository.add_target("a/model.onnx", b"two")
    device.repository.publish()

    assert device.download("a/model.onnx")
    assert device.contents == [b"two"]


@pytest.mark.parametrize("lie", [b"evil", b"good and more", b"goo", b""])
def test_a_target_of_other_bytes_is_refused(device: Device, lie: bytes) -> None:
    info = device.repository.add_target("a", b"good")
    device.repository.publish()
    device.repository.served[f"targets/{info.hashes['sha256']}.a"] = lie

    assert not device.download("a")

    assert device.contents == []


def test_a_delegated_role_speaks_for_its_paths(device: Device) -> None:
    device.repository.delegate("targets", "release-digits", "models/digits/*")
    device.repository.add_target("models/digits/1", b"digits", "release-digits")
    device.repository.publish()

    assert device.download("models/digits/1")

    assert device.contents == [b"digits"]


def test_a_delegated_role_does_not_speak_for_other_paths(device: Device) -> None:
    device.repository.delegate("targets", "release-digits", "models/digits/*")
    device.repository.add_target("models/voice/1", b"voice", "release-digits")
    device.repository.add_target("models/digits/a/b", b"deeper", "release-digits")
    device.repository.publish()

    assert not device.download("models/voice/1")
    assert not device.download("models/digits/a/b")


def test_a_terminating_delegation_has_the_last_word(device: Device) -> None:
    device.repository.delegate("targets", "first", "a/*", terminating=True)
    device.repository.delegate("targets", "second", "a/*")
    device.repository.add_target("a/x", b"second", "second")
    device.repository.publish()

    assert not device.download("a/x")


def test_the_first_delegation_that_knows_a_path_wins(device: Device) -> None:
    device.repository.delegate("targets", "first", "a/*")
    device.repository.delegate("targets", "second", "a/*")
    device.repository.add_target("a/x", b"first", "first")
    device.repository.add_target("a/x", b"second", "second")
    device.repository.publish()

    assert device.download("a/x")

    assert device.contents == [b"first"]


def test_delegations_are_followed_down_and_never_round(device: Device) -> None:
    repository = device.repository
    repository.delegate("targets", "upper", "a/*")
    repository.delegate("upper", "lower", "a/*")
    repository.delegate("lower", "upper", "a/*")
    repository.add_target("a/x", b"deep", "lower")
    repository.publish()

    assert device.download("a/x")
    assert not device.download("a/unknown")


@pytest.mark.parametrize("fault", ["stranger", "expired", "missing", "version"])
def test_a_broken_delegated_role_gives_nothing(device: Device, fault: str) -> None:
    repository = device.repository
    repository.delegate("targets", "role", "a/*")
    repository.add_target("a/x", b"x", "role")
    match fault:
        case "stranger":
            repository.signers["role"] = [CryptoSigner.generate_ed25519()]
        case "expired":
            repository.delegated["role"].expires = NOW - DAY
    repository.publish()
    match fault:
        case "missing":
            del repository.served["1.role.json"]
        case "version":
            repository.delegated["role"].version = 7
            repository.served["1.role.json"] = repository._signed(
                repository.delegated["role"], repository.signers["role"]
            )

    assert device.refresh()
    assert not device.download("a/x")


def test_a_delegated_role_cannot_go_back(device: Device) -> None:
    repository = device.repository
    repository.delegate("targets", "role", "a/*")
    repository.delegated["role"].version = 5
    repository.add_target("a/x", b"x", "role")
    repository.publish()
    assert device.download("a/x")
    repository.delegated["role"].version = 4
    repository.publish()

    assert not device.refresh()


@pytest.mark.parametrize("role", ["a b", "..", "a/b", "../../etc", "é"])
def test_names_of_roles_stay_within_the_folder(device: Device, role: str) -> None:
    device.repository.delegate("targets", role, "a/*")
    device.repository.add_target("a/x", b"x", role)
    device.repository.publish()

    assert device.download("a/x")

    inside = {path.relative_to(device.folder.parent).parts[0] for path in device.folder.parent.rglob("*")}
    assert inside == {"metadata", "targets", "trusted_root.json"}
