"""Who signed what, of real metadata."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.bundles import write_named_bundle
from muster_controller.registry.errors import MetadataRefused
from muster_controller.registry.metadata import path_of, release_role
from muster_controller.registry.operator import init_operator, revoke_release, sign_release
from muster_controller.registry.signatures import newest_targets, past_target, role_steps, role_trusts
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.ids import ModelName
from muster_shared.messages import TrustFiles

NOW = datetime(2026, 11, 22, tzinfo=UTC)
MODEL = ModelName("digits")
ROLE = release_role(MODEL)


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    return tmp_path / "operator"


@pytest.fixture
def repository(tmp_path: Path, operator: Path) -> TufRepository:
    offline = init_operator(operator, [MODEL], create_online_keys(tmp_path / "data"), NOW)
    repository = TufRepository(tmp_path / "data")
    repository.accept_offline(offline.root, offline.targets, offline.keys, NOW)
    return repository


def publish(repository: TufRepository, operator: Path, version: str, release: int, *keys: str) -> None:
    bundle = write_named_bundle(operator.parent / version, MODEL, version, release)
    signed = sign_release(operator, bundle, repository.role_metadata(ROLE), NOW, with_keys=keys)
    repository.accept_release(ROLE, signed.metadata, (bundle / "bundle.json").read_bytes(), NOW)


def test_each_role_has_its_threshold_and_says_which_of_its_keys_signed(
    repository: TufRepository, operator: Path
) -> None:
    publish(repository, operator, "1.0.0", 1, "release-digits-1", "release-digits-3")

    found = {each.role: each for each in role_trusts(repository.trust_messages())}

    assert list(found) == ["root", "targets", ROLE, "snapshot", "timestamp"]
    assert (found["root"].threshold, found["root"].signed, len(found["root"].keys)) == (2, 3, 3)
    assert (found[ROLE].delegated_by, found[ROLE].threshold, found[ROLE].version) == ("targets", 2, 1)
    assert sorted(key.has_signed for key in found[ROLE].keys) == [False, True, True]
    assert [each for each in found if found[each].is_online] == ["snapshot", "timestamp"]


def test_a_role_without_metadata_is_there_and_has_signed_nothing(repository: TufRepository) -> None:
    found = {each.role: each for each in role_trusts(repository.trust_messages())}

    assert (found[ROLE].version, found[ROLE].expires_at, found[ROLE].signed) == (None, None, 0)


def test_before_the_operator_came_there_is_no_role() -> None:
    assert role_trusts(()) == ()
    assert newest_targets([TrustFiles(role="timestamp", files={"timestamp.json": "{}"})]) is None


def test_releases_come_and_go_with_the_versions_of_their_role(repository: TufRepository, operator: Path) -> None:
    publish(repository, operator, "1.0.0", 1)
    publish(repository, operator, "2.0.0", 2)
    revoked = revoke_release(operator, MODEL, "2.0.0", repository.role_metadata(ROLE), NOW)
    repository.accept_release(ROLE, revoked.metadata, None, NOW)
    targets = newest_targets(repository.trust_messages())
    assert targets is not None

    steps = role_steps(ROLE, targets, repository.role_versions(ROLE))

    one, two = path_of(MODEL, "1.0.0"), path_of(MODEL, "2.0.0")
    assert [(step.version, step.added, step.removed) for step in steps] == [
        (3, (), (two,)),
        (2, (two,), ()),
        (1, (one,), ()),
    ]
    assert all(len(step.signed_by) == 3 and step.others == 0 for step in steps)
    past = past_target(ROLE, two, repository.role_versions(ROLE))
    assert past is not None
    assert past.release == 2
    assert past_target(ROLE, path_of(MODEL, "9.0.0"), repository.role_versions(ROLE)) is None


def test_a_check_says_what_would_change_and_changes_nothing(repository: TufRepository, operator: Path) -> None:
    publish(repository, operator, "1.0.0", 1)
    before = repository.role_metadata(ROLE)
    bundle = write_named_bundle(operator.parent / "2.0.0", MODEL, "2.0.0", 2)
    signed = sign_release(operator, bundle, before, NOW)

    found = repository.check_release(ROLE, signed.metadata, (bundle / "bundle.json").read_bytes(), NOW)

    assert (found.is_new, found.added, found.removed) == (True, (path_of(MODEL, "2.0.0"),), ())
    assert repository.role_metadata(ROLE) == before
    assert before is not None
    assert not repository.check_release(ROLE, before, None, NOW).is_new
    with pytest.raises(MetadataRefused, match="was not sent"):
        repository.check_release(ROLE, signed.metadata, None, NOW)
