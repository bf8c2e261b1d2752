"""The operator's folder and the controller's repository: what is published, and what is refused."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from harness.bundles import write_bundle
from muster_controller.registry.errors import (
    FolderInvalid,
    KeyMissing,
    MetadataRefused,
    RegistryError,
    RepositoryEmpty,
    ThresholdNotMet,
    VersionConflict,
)
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import (
    SignedRelease,
    add_model,
    add_signature,
    co_sign,
    init_operator,
    load_offline,
    revoke_release,
    rotate_online_keys,
    sign_release,
)
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import KEYS_TARGET, Assignment, open_signed, parse_keys
from muster_shared.bundle import target_path
from muster_shared.errors import FileTampered, WireError
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.messages import TrustFiles

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DIGITS, OCR = ModelName("digits"), ModelName("ocr")


@dataclass(frozen=True)
class Desk:
    """An operator and a controller in one folder."""

    folder: Path

    @property
    def operator(self) -> Path:
        return self.folder / "operator"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def repository(self) -> TufRepository:
        return TufRepository(self.data)

    def bundle(self, model: ModelName, release: int) -> Path:
        return write_bundle(self.folder, model, release)

    def sign(self, model: ModelName, release: int, *with_keys: str, partial: bool = False) -> SignedRelease:
        return sign_release(self.operator, self.bundle(model, release), None, NOW, with_keys=with_keys, partial=partial)

    def manifest(self, model: ModelName, release: int) -> bytes:
        return (self.bundle(model, release) / "bundle.json").read_bytes()

    def publish(self, model: ModelName, release: int) -> bool:
        signed = self.sign(model, release)
        return self.repository().accept_release(signed.role, signed.metadata, self.manifest(model, release), NOW)

    def key(self, name: str) -> Path:
        return self.operator / "keys" / f"{name}.pem"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = Desk(tmp_path_factory.mktemp("template"))
    offline = init_operator(desk.operator, [DIGITS, OCR], create_online_keys(desk.data), NOW)
    desk.repository().accept_offline(offline.root, offline.targets, offline.keys, NOW)
    return desk.folder


@pytest.fixture
def desk(template: Path, tmp_path: Path) -> Desk:
    shutil.copytree(template, tmp_path / "desk")
    return Desk(tmp_path / "desk")


def resigned(desk: Desk, metadata: bytes, change: Callable[[Targets], object], *keys: str) -> bytes:
    """Return `metadata` changed by someone who holds `keys`."""
    document: Metadata[Targets] = Metadata.from_bytes(metadata)
    change(document.signed)
    document.signatures.clear()
    for key in keys:
        document.sign(load_signer(desk.key(key)), append=True)
    return document.to_bytes()


def files_of(messages: tuple[TrustFiles, ...]) -> dict[str, str]:
    return {name: text for message in messages for name, text in message.files.items()}


# -- publishing ------------------------------------------------------------------------------------------------------


def test_two_releases_of_two_models_are_published(desk: Desk) -> None:
    for model in (DIGITS, OCR):
        for release in (1, 2):
            assert desk.publish(model, release)

    found = desk.repository().releases()

    assert [(one.path, one.release) for one in found] == [
        (target_path(model, f"{release}.0.0"), release) for model in (DIGITS, OCR) for release in (1, 2)
    ]
    names = set(files_of(desk.repository().trust_messages()))
    assert names == {
        "1.root.json",
        KEYS_TARGET,
        "1.targets.json",
        "2.release-digits.json",
        "2.release-ocr.json",
        "5.snapshot.json",
        "timestamp.json",
    }


def test_publishing_the_same_bytes_again_changes_nothing(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)
    repository = desk.repository()
    repository.accept_release(signed.role, signed.metadata, desk.manifest(DIGITS, 1), NOW)
    before = repository.trust_messages()

    assert not repository.accept_release(signed.role, signed.metadata, desk.manifest(DIGITS, 1), NOW)

    assert repository.trust_messages() == before


def test_a_repository_without_an_operator_says_so(tmp_path: Path) -> None:
    repository = TufRepository(tmp_path)

    assert not repository.is_ready
    assert repository.releases() == ()
    with pytest.raises(RepositoryEmpty):
        repository.trust_messages()
    with pytest.raises(RepositoryEmpty):
        repository.refresh_online(NOW)


# -- thresholds ------------------------------------------------------------------------------------------------------


def test_one_release_key_of_three_is_not_enough_and_two_are(desk: Desk) -> None:
    with pytest.raises(ThresholdNotMet) as caught:
        desk.sign(DIGITS, 1, "release-digits-1")
    one = desk.sign(DIGITS, 1, "release-digits-1", partial=True)
    with pytest.raises(ThresholdNotMet):
        desk.repository().accept_release(one.role, one.metadata, desk.manifest(DIGITS, 1), NOW)

    two = desk.sign(DIGITS, 1, "release-digits-1", "release-digits-3")

    assert (caught.value.have, caught.value.need, one.is_complete) == (1, 2, False)
    assert desk.repository().accept_release(two.role, two.metadata, desk.manifest(DIGITS, 1), NOW)


def test_holders_sign_one_after_the_other(desk: Desk, tmp_path: Path) -> None:
    elsewhere = Desk(tmp_path / "elsewhere")
    shutil.copytree(desk.folder, elsewhere.folder)
    for gone, here in ((desk, elsewhere), (elsewhere, desk)):
        gone.key("release-digits-3").unlink()
        gone.key("release-digits-1" if here is desk else "release-digits-2").unlink()

    first = desk.sign(DIGITS, 1, partial=True)
    second = co_sign(elsewhere.operator, first.metadata, first.role)

    assert (first.have, second.have, second.is_complete) == (1, 2, True)
    assert desk.repository().accept_release(second.role, second.metadata, desk.manifest(DIGITS, 1), NOW)


def test_signing_twice_with_one_key_counts_once(desk: Desk) -> None:
    first = desk.sign(DIGITS, 1, "release-digits-1", partial=True)

    again = add_signature(first.metadata, load_signer(desk.key("release-digits-1")))

    with pytest.raises(ThresholdNotMet):
        desk.repository().accept_release(first.role, again, desk.manifest(DIGITS, 1), NOW)


def test_the_keys_of_another_model_sign_nothing_here(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)
    foreign = resigned(desk, signed.metadata, lambda targets: None, "release-ocr-1", "release-ocr-2", "targets-1")

    with pytest.raises(ThresholdNotMet) as caught:
        desk.repository().accept_release(signed.role, foreign, desk.manifest(DIGITS, 1), NOW)

    assert caught.value.have == 0


def test_the_keys_of_a_model_cannot_name_releases_of_another(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)
    path = target_path(OCR, "1.0.0")

    def smuggle(targets: Targets) -> None:
        stolen = TargetFile.from_data(path, desk.manifest(OCR, 1), ["sha256"])
        stolen.unrecognized_fields["custom"] = {"release": 2}
        targets.targets[path] = stolen

    metadata = resigned(desk, signed.metadata, smuggle, "release-digits-1", "release-digits-2")

    with pytest.raises(MetadataRefused, match="may sign"):
        desk.repository().accept_release(signed.role, metadata, desk.manifest(DIGITS, 1), NOW)


def test_a_role_that_nobody_delegated_is_refused(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)

    for role in ("release-other", "targets", "../targets"):
        with pytest.raises(MetadataRefused):
            desk.repository().accept_release(role, signed.metadata, desk.manifest(DIGITS, 1), NOW)


# -- what a release may say ------------------------------------------------------------------------------------------


def test_a_tampered_manifest_is_refused(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)
    tampered = desk.manifest(DIGITS, 1).replace(b"proprietary", b"MIT        ")

    with pytest.raises(MetadataRefused, match="not the signed one"):
        desk.repository().accept_release(signed.role, signed.metadata, tampered, NOW)
    with pytest.raises(MetadataRefused, match="was not sent"):
        desk.repository().accept_release(signed.role, signed.metadata, None, NOW)

    assert desk.repository().releases() == ()


def test_a_tampered_bundle_is_not_signed(desk: Desk) -> None:
    folder = desk.bundle(DIGITS, 1)
    (folder / "model.onnx").write_bytes(b"digits X")

    with pytest.raises(FileTampered):
        sign_release(desk.operator, folder, None, NOW)


def test_a_version_that_does_not_follow_is_a_conflict(desk: Desk) -> None:
    desk.publish(DIGITS, 1)
    stale = desk.sign(DIGITS, 2)
    late = resigned(desk, stale.metadata, lambda t: setattr(t, "version", 4), "release-digits-1", "release-digits-2")
    early = resigned(desk, stale.metadata, lambda t: setattr(t, "version", 1), "release-digits-1", "release-digits-2")

    for metadata in (late, early):
        with pytest.raises(VersionConflict):
            desk.repository().accept_release(stale.role, metadata, desk.manifest(DIGITS, 2), NOW)


def test_a_published_release_never_changes_and_counters_only_rise(desk: Desk) -> None:
    desk.publish(DIGITS, 1)
    signed = desk.sign(DIGITS, 2)
    path = target_path(DIGITS, "1.0.0")
    keys = ("release-digits-1", "release-digits-2")
    changed = resigned(desk, signed.metadata, lambda t: setattr(t.targets[path], "length", 1), *keys)
    lied = resigned(
        desk,
        signed.metadata,
        lambda t: t.targets[target_path(DIGITS, "2.0.0")].unrecognized_fields.update(custom={"release": 9}),
        *keys,
    )

    with pytest.raises(MetadataRefused, match="never changes"):
        desk.repository().accept_release(signed.role, changed, desk.manifest(DIGITS, 2), NOW)
    with pytest.raises(MetadataRefused, match="counter"):
        desk.repository().accept_release(signed.role, lied, desk.manifest(DIGITS, 2), NOW)
    with pytest.raises(MetadataRefused, match="signed already"):
        desk.sign(DIGITS, 1)
    revoke_release(desk.operator, DIGITS, "1.0.0", None, NOW)
    with pytest.raises(MetadataRefused, match="above"):
        desk.sign(DIGITS, 1)


def test_expired_release_metadata_is_not_published(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)

    with pytest.raises(MetadataRefused, match="expired"):
        desk.repository().accept_release(signed.role, signed.metadata, desk.manifest(DIGITS, 1), NOW + 366 * DAY)


def test_a_revoked_release_is_gone(desk: Desk) -> None:
    desk.publish(DIGITS, 1)
    desk.publish(DIGITS, 2)
    revoked = revoke_release(desk.operator, DIGITS, "1.0.0", None, NOW)

    desk.repository().accept_release(revoked.role, revoked.metadata, None, NOW)

    assert [one.path for one in desk.repository().releases()] == [target_path(DIGITS, "2.0.0")]


# -- a controller that lies to its operator --------------------------------------------------------------------------


def test_the_operator_signs_on_only_from_what_the_release_keys_signed(desk: Desk) -> None:
    signed = desk.sign(DIGITS, 1)
    path = target_path(DIGITS, "6.6.6")

    def plant(targets: Targets) -> None:
        targets.targets[path] = TargetFile.from_data(path, b"evil", ["sha256"])

    planted = resigned(desk, signed.metadata, plant, "release-digits-1")

    with pytest.raises(ThresholdNotMet):
        sign_release(desk.operator, desk.bundle(DIGITS, 2), planted, NOW)


def test_the_operator_does_not_sign_on_from_older_metadata_than_his_own(desk: Desk) -> None:
    first = desk.sign(DIGITS, 1)
    desk.sign(DIGITS, 2)
    revoke_release(desk.operator, DIGITS, "1.0.0", None, NOW)

    with pytest.raises(VersionConflict):
        sign_release(desk.operator, desk.bundle(DIGITS, 3), first.metadata, NOW)


# -- root, targets, online keys --------------------------------------------------------------------------------------


def test_root_and_targets_need_two_of_three(desk: Desk) -> None:
    desk.key("targets-1").unlink()
    add_model(desk.operator, ModelName("vad"), NOW)
    desk.key("targets-2").unlink()

    with pytest.raises(ThresholdNotMet):
        add_model(desk.operator, ModelName("kws"), NOW)

    assert Metadata[Targets].from_bytes(load_offline(desk.operator).targets).signed.version == 2


def test_offline_metadata_below_its_threshold_is_refused(desk: Desk) -> None:
    offline = add_model(desk.operator, ModelName("vad"), NOW)
    weak = resigned(desk, offline.targets, lambda t: None, "targets-1", "root-1", "release-ocr-1")

    with pytest.raises(ThresholdNotMet):
        desk.repository().accept_offline(offline.root, weak, offline.keys, NOW)

    assert "release-vad" not in desk.repository().roles()
    assert desk.repository().accept_offline(offline.root, offline.targets, offline.keys, NOW)
    assert "release-vad" in desk.repository().roles()


def test_older_targets_and_other_assignment_keys_are_refused(desk: Desk) -> None:
    first = load_offline(desk.operator)
    second = add_model(desk.operator, ModelName("vad"), NOW)
    repository = desk.repository()
    repository.accept_offline(second.root, second.targets, second.keys, NOW)

    with pytest.raises(VersionConflict):
        repository.accept_offline(first.root, first.targets, first.keys, NOW)
    with pytest.raises(MetadataRefused, match="not the file that was signed"):
        repository.accept_offline(second.root, second.targets, second.keys + b" ", NOW)


def test_a_foreign_root_is_refused_once_there_is_one(desk: Desk, tmp_path: Path) -> None:
    stranger = init_operator(tmp_path / "stranger", [DIGITS], create_online_keys(desk.data), NOW)
    renewed = rotate_online_keys(tmp_path / "stranger", create_online_keys(desk.data), NOW)

    with pytest.raises(VersionConflict):
        desk.repository().accept_offline(stranger.root, stranger.targets, stranger.keys, NOW)
    with pytest.raises(ThresholdNotMet):
        desk.repository().accept_offline(renewed.root, renewed.targets, renewed.keys, NOW)


def test_a_root_for_another_controller_is_refused(desk: Desk, tmp_path: Path) -> None:
    offline = load_offline(desk.operator)
    create_online_keys(tmp_path / "other")

    with pytest.raises(MetadataRefused, match="not this controller's"):
        TufRepository(tmp_path / "other").accept_offline(offline.root, offline.targets, offline.keys, NOW)
    with pytest.raises(KeyMissing):
        TufRepository(tmp_path / "none").accept_offline(offline.root, offline.targets, offline.keys, NOW)


def test_delegations_that_would_orphan_a_current_release_are_refused(desk: Desk) -> None:
    desk.publish(DIGITS, 1)
    offline = load_offline(desk.operator)

    def other_keys(targets: Targets) -> None:
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        targets.delegations.roles["release-digits"].keyids = targets.delegations.roles["release-ocr"].keyids
        targets.version += 1

    orphaning = resigned(desk, offline.targets, other_keys, "targets-1", "targets-2")

    with pytest.raises(ThresholdNotMet, match="release-digits"):
        desk.repository().accept_offline(offline.root, orphaning, offline.keys, NOW)


def test_online_keys_are_rotated_by_the_root_keys(desk: Desk) -> None:
    desk.publish(DIGITS, 1)
    for path in (desk.data / "keys").iterdir():
        path.unlink()
    repository = desk.repository()
    with pytest.raises(KeyMissing):
        repository.refresh_online(NOW + DAY)
    new = create_online_keys(desk.data)
    with pytest.raises(ThresholdNotMet):
        repository.refresh_online(NOW + DAY)

    rotated = rotate_online_keys(desk.operator, new, NOW + DAY)
    assert repository.accept_offline(rotated.root, rotated.targets, rotated.keys, NOW + DAY)

    assert Metadata[Root].from_bytes(rotated.root).signed.version == 2
    assert {"1.root.json", "2.root.json"} <= set(files_of(repository.trust_messages()))
    assert len(repository.releases()) == 1
    assert repository.bootstrap_root() == files_of(repository.trust_messages())["1.root.json"].encode()


def test_timestamp_and_snapshot_are_signed_again_at_half_their_life(desk: Desk) -> None:
    repository = desk.repository()

    assert not repository.refresh_online(NOW + 0.4 * DAY)
    assert repository.refresh_online(NOW + 0.6 * DAY)
    names = set(files_of(repository.trust_messages()))
    assert not repository.refresh_online(NOW + 0.7 * DAY)
    assert repository.refresh_online(NOW + 16 * DAY)

    assert "1.snapshot.json" in names
    assert "2.snapshot.json" in files_of(desk.repository().trust_messages())
    expiries = {entry.role: entry.expires for entry in desk.repository().expiries()}
    assert expiries["timestamp"] == NOW + 17 * DAY
    assert expiries["snapshot"] == NOW + 46 * DAY


def test_an_assignment_is_signed_by_the_key_that_the_targets_name(desk: Desk) -> None:
    assignment = Assignment(
        fleet=FleetId("f"), device=DeviceId("d"), counter=1, issued_at=0.0, expires_at=1.0, models=()
    )

    raw = desk.repository().sign_assignment(assignment)

    assert open_signed(raw, parse_keys(load_offline(desk.operator).keys)) == assignment


def test_an_operator_folder_is_made_once_and_a_model_added_once(desk: Desk) -> None:
    with pytest.raises(FolderInvalid):
        init_operator(desk.operator, [DIGITS], create_online_keys(desk.data), NOW)
    with pytest.raises(FolderInvalid):
        add_model(desk.operator, DIGITS, NOW)
    with pytest.raises(WireError):
        add_model(desk.operator, ModelName("m" * 57), NOW)  # release-<model> must be a topic level.


# -- power loss ------------------------------------------------------------------------------------------------------


class PowerLost(BaseException):
    """Not an Exception: nothing may catch it and tidy up as if the machine still ran."""


def test_power_lost_at_any_step_leaves_the_old_repository_or_the_new_one(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publish(DIGITS, 1)
    signed, manifest = desk.sign(DIGITS, 2), desk.manifest(DIGITS, 2)
    before = desk.repository().releases()
    outcomes: list[bool] = []
    steps_left = 0

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            nonlocal steps_left
            if steps_left == 0:
                raise PowerLost
            steps_left -= 1
            return real(*arguments, **options)

        return step

    for steps in range(200):
        data = tmp_path / f"data-{steps}"
        shutil.copytree(desk.data, data)
        repository = TufRepository(data)
        steps_left = steps
        finished = False
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "open"):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                repository.accept_release(signed.role, signed.metadata, manifest, NOW)
                finished = True
            except PowerLost:
                pass

        after = TufRepository(data)
        landed = len(after.releases()) == 2
        outcomes.append(landed)
        assert after.releases()[:1] == before
        assert ("2.release-digits.json" in files_of(after.trust_messages())) == landed
        assert after.accept_release(signed.role, signed.metadata, manifest, NOW) != landed
        assert len(after.releases()) == 2
        if finished:
            break
    else:
        raise AssertionError("the write never finished")

    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_damaged_file_is_named(desk: Desk) -> None:
    (desk.data / "trust/1.targets.json").write_bytes(b"")

    with pytest.raises(MetadataRefused, match="targets"):
        desk.repository()


def test_every_refusal_is_one_of_ours() -> None:
    for kind in (FolderInvalid, KeyMissing, MetadataRefused, ThresholdNotMet, VersionConflict, RepositoryEmpty):
        assert issubclass(kind, RegistryError)


def test_messages_are_small_enough_for_every_broker(desk: Desk) -> None:
    for message in desk.repository().trust_messages():
        assert len(msgspec.json.encode(message)) < 128 * 1024
