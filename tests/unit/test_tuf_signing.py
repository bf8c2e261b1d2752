"""The operator's keys: how many of whose it takes to sign what, for operator and controller alike."""

import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from harness.signing import DAY, DIGITS, NOW, OCR, Desk, files_of, resigned
from muster_controller.registry.errors import (
    FolderInvalid,
    KeyMissing,
    MetadataRefused,
    ThresholdNotMet,
    VersionConflict,
)
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import (
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
from muster_shared.assignment import Assignment, open_signed, parse_keys
from muster_shared.bundle import target_path
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName


@pytest.fixture
def desk(signing_desk: Desk) -> Desk:
    return signing_desk


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
