"""The controller's repository: what is published, what is refused, and what a power cut leaves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from harness.signing import DAY, DIGITS, NOW, OCR, Desk, files_of, resigned
from muster_controller.registry.errors import (
    FolderInvalid,
    KeyMissing,
    MetadataRefused,
    RegistryError,
    RepositoryEmpty,
    ThresholdNotMet,
    VersionConflict,
)
from muster_controller.registry.operator import revoke_release, sign_release
from muster_controller.registry.tuf_repository import TufRepository
from muster_shared.assignment import KEYS_TARGET
from muster_shared.bundle import target_path
from muster_shared.errors import FileTampered


@pytest.fixture
def desk(signing_desk: Desk) -> Desk:
    return signing_desk


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
