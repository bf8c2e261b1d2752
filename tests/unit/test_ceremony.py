"""Key ceremonies between people who share nothing but a file: each step, and what each step refuses."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from harness.bundles import write_bundle
from muster_controller.registry import ceremony as steps
from muster_controller.registry import ceremony_begin
from muster_controller.registry.ceremony import Stage, can_sign, finish, join, needs, sign, stage
from muster_controller.registry.ceremony_begin import Rotation
from muster_controller.registry.ceremony_file import Ceremony, awaited, encode_ceremony, parse_ceremony
from muster_controller.registry.ceremony_losses import Standing, assess
from muster_controller.registry.ceremony_words import digest, explain, joined_digest, plan
from muster_controller.registry.errors import (
    CeremonyRefused,
    KeyUnreadable,
    MetadataRefused,
    ThresholdNotMet,
    VersionConflict,
)
from muster_controller.registry.keys import create_key
from muster_controller.registry.operator import all_roots, load_offline, newest, newest_releases
from muster_controller.registry.tuf_repository import TufRepository, create_next_online_keys, create_online_keys
from muster_shared.assignment import AssignmentKeys, encode_keys, parse_keys
from muster_shared.errors import WireError
from muster_shared.ids import ModelName
from muster_shared.metrics import key_id

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DIGITS = ModelName("digits")
ROLE = "release-digits"
HOLDERS = ("anna", "ben", "chris")
KEYS = tuple(f"{role}-{holder}" for role in ("root", "targets", ROLE) for holder in HOLDERS)


@dataclass
class Company:
    """People with a folder each, a desk whose folder holds no private key, and a controller."""

    folder: Path
    now: datetime = NOW
    ceremonies: int = 0
    travelled: list[bytes] = field(default_factory=list)
    """What went from one to the next: nothing else does."""

    @property
    def desk(self) -> Path:
        return self.folder / "desk"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def of(self, holder: str) -> Path:
        return self.folder / holder

    def repository(self) -> TufRepository:
        return TufRepository(self.data)

    def create(self) -> Ceremony:
        online = create_online_keys(self.data)
        return ceremony_begin.begin_create("c0", KEYS, {}, online, self.now)

    def rotate(self, *, add: Iterable[str] = (), remove: Iterable[str] = (), **more: object) -> Ceremony:
        self.ceremonies += 1
        rotation = Rotation(tuple(add), tuple(remove), **more)  # type: ignore[arg-type]  # Of Rotation: it checks them.
        return ceremony_begin.begin_rotate(f"c{self.ceremonies}", self.desk, rotation, {}, self.now)

    def release(self, number: int) -> Ceremony:
        self.ceremonies += 1
        bundle = write_bundle(self.folder, DIGITS, number)
        return ceremony_begin.begin_release(f"c{self.ceremonies}", self.desk, bundle, None, self.now)

    def carry(self, ceremony: Ceremony) -> Ceremony:
        """Let the file travel to the next machine."""
        self.travelled.append(encode_ceremony(ceremony))
        return parse_ceremony(self.travelled[-1])

    def join(self, ceremony: Ceremony, *holders: str) -> Ceremony:
        for holder in holders:
            ceremony, _ = join(self.carry(ceremony), self.of(holder), holder, self.now)
        return ceremony

    def sign(self, ceremony: Ceremony, *holders: str) -> Ceremony:
        for holder in holders:
            ceremony, _ = sign(self.carry(ceremony), self.of(holder))
        return ceremony

    def finish(self, ceremony: Ceremony, *, everywhere: bool = True) -> None:
        ceremony = self.carry(ceremony)
        people = [path for path in self.folder.iterdir() if (path / "keys").is_dir() and path != self.data]
        for folder in {self.desk, *people} if everywhere else {self.desk}:
            finish(ceremony, folder, self.now)

    def push(self) -> bool:
        offline = load_offline(self.desk)
        return self.repository().accept_offline(
            offline.root,
            offline.targets,
            offline.keys,
            self.now,
            between=all_roots(self.desk)[:-1],
            releases=newest_releases(self.desk),
        )

    def publish(self, number: int) -> bool:
        raw = newest(self.desk, ROLE)
        assert raw is not None
        manifest = (self.folder / f"digits-{number}" / "bundle.json").read_bytes()
        return self.repository().accept_release(ROLE, raw, manifest, self.now)

    def root(self) -> Root:
        return Metadata[Root].from_bytes(load_offline(self.desk).root).signed


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    company = Company(tmp_path_factory.mktemp("template"))
    ceremony = company.join(company.create(), *HOLDERS)
    company.finish(company.sign(ceremony, "anna", "ben"))
    company.push()
    company.finish(company.sign(company.release(1), "ben", "chris"))
    company.publish(1)
    return company.folder


@pytest.fixture
def company(template: Path, tmp_path: Path) -> Company:
    """A company with keys, a controller that took them, and one release."""
    return Company(shutil.copytree(template, tmp_path / "company"))


def secrets_of(company: Company) -> list[bytes]:
    return [path.read_bytes() for path in company.folder.rglob("*.pem")]


# -- creation --------------------------------------------------------------------------------------------------------


def test_three_people_make_the_first_keys_and_exchange_nothing_but_the_file(tmp_path: Path) -> None:
    company = Company(tmp_path)

    ceremony = company.join(company.create(), *HOLDERS)
    ceremony = company.sign(ceremony, "chris", "anna")
    company.finish(ceremony)

    assert company.push()
    for holder in HOLDERS:
        private = sorted(path.name for path in (company.of(holder) / "keys").glob("*.pem"))
        assert private == [f"{ROLE}-{holder}.pem", f"root-{holder}.pem", f"targets-{holder}.pem"]
    assert not list((company.desk / "keys").glob("*.pem"))
    assert not any(b"PRIVATE" in each for each in company.travelled)


def test_nobody_signs_before_everybody_has_joined(tmp_path: Path) -> None:
    company = Company(tmp_path)
    ceremony = company.join(company.create(), "anna", "ben")

    with pytest.raises(CeremonyRefused, match="before root-chris"):
        company.sign(ceremony, "anna")

    assert stage(ceremony) is Stage.JOINING
    assert awaited(ceremony) == ("root-chris", "targets-chris", f"{ROLE}-chris")
    with pytest.raises(CeremonyRefused, match="did not join"):
        finish(ceremony, company.desk, NOW)


def test_a_stranger_cannot_join_and_nobody_joins_twice(tmp_path: Path) -> None:
    company = Company(tmp_path)
    ceremony = company.join(company.create(), "anna")

    for holder in ("mallory", "anna"):
        with pytest.raises(CeremonyRefused, match=f"no key of '{holder}' is awaited"):
            company.join(ceremony, holder)


def test_a_holder_whose_file_was_lost_joins_again_with_the_key_that_he_made(tmp_path: Path) -> None:
    company = Company(tmp_path)
    first = company.create()
    lost = company.join(first, "anna")

    again = company.join(first, "anna")

    assert [each.keyid for each in again.joined] == [each.keyid for each in lost.joined]


def test_a_private_key_is_encrypted_with_its_holders_passphrase(tmp_path: Path) -> None:
    company = Company(tmp_path)
    ceremony, made = join(company.create(), company.of("anna"), "anna", NOW, passphrase=lambda _path: b"anna's own")
    ceremony = company.join(ceremony, "ben", "chris")

    with pytest.raises(KeyUnreadable, match="PASSPHRASE"):
        sign(ceremony, company.of("anna"), passphrase=lambda _path: b"a guess")
    signed, keys = sign(ceremony, company.of("anna"), passphrase=lambda _path: b"anna's own")

    assert b"ENCRYPTED" in made[0].path.read_bytes()
    assert [key.name for key in keys] == ["root-anna", "targets-anna"]
    assert stage(signed) is Stage.SIGNING


@pytest.mark.parametrize(
    ("keys", "thresholds", "said"),
    [
        (["root-anna", "root-ben"], {}, "nobody holds a targets key"),
        (["root-anna", "targets-anna", "targets-ben"], {}, "root would have 1 keys, of which 2 must sign"),
        (["root-anna", "targets-anna"], {"root": 0, "targets": 1}, "root would have 1 keys, of which 0"),
        (["root-anna", "targets-anna", "snapshot"], {}, "the controller's own"),
        (["root-anna", "targets-anna"], {"release-ocr": 1}, "there is no role release-ocr"),
    ],
)
def test_a_creation_that_cannot_work_is_refused_at_its_beginning(
    tmp_path: Path, keys: list[str], thresholds: dict[str, int], said: str
) -> None:
    online = create_online_keys(tmp_path)

    with pytest.raises(CeremonyRefused, match=said):
        ceremony_begin.begin_create("c", keys, thresholds, online, NOW)


def test_a_name_that_is_no_key_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="not a key name"):
        ceremony_begin.begin_create("c", ["../root"], {}, create_online_keys(tmp_path), NOW)


# -- signing ---------------------------------------------------------------------------------------------------------


def test_one_signature_below_the_threshold_finishes_nothing(company: Company) -> None:
    ceremony = company.sign(company.release(2), "anna")

    with pytest.raises(ThresholdNotMet, match="1 of the 2"):
        company.finish(ceremony)

    assert [(need.by, len(need.have), need.is_met) for need in needs(ceremony)] == [("targets 1", 1, False)]
    assert newest(company.desk, ROLE) == newest(company.of("anna"), ROLE)


def test_signing_twice_is_refused_and_counts_once(company: Company) -> None:
    ceremony = company.sign(company.release(2), "anna")

    with pytest.raises(CeremonyRefused, match="signed already"):
        company.sign(ceremony, "anna")


def test_who_has_no_key_that_is_asked_signs_nothing(company: Company) -> None:
    stranger = company.of("mallory")
    create_key(stranger / "keys", f"{ROLE}-mallory")

    with pytest.raises(CeremonyRefused, match=r"no key in .* is asked"):
        sign(company.release(2), stranger)


def test_a_release_that_two_signed_is_published(company: Company) -> None:
    company.finish(company.sign(company.release(2), "chris", "anna"))

    assert company.publish(2)
    assert [one.release for one in company.repository().releases()] == [1, 2]


def test_a_revocation_that_two_signed_takes_the_release_away(company: Company) -> None:
    ceremony = ceremony_begin.begin_revoke("r", company.desk, DIGITS, "1.0.0", None, NOW)
    company.finish(company.sign(ceremony, "anna", "ben"))
    raw = newest(company.desk, ROLE)
    assert raw is not None

    company.repository().accept_release(ROLE, raw, None, NOW)

    assert company.repository().releases() == ()
    assert any("is revoked" in line for line in explain(ceremony)[ROLE])


def test_finishing_twice_writes_nothing_the_second_time(company: Company) -> None:
    ceremony = company.sign(company.release(2), "chris", "anna")
    finish(ceremony, company.desk, NOW)

    assert finish(ceremony, company.desk, NOW) == ()


def test_two_ceremonies_that_make_one_version_do_not_overwrite_each_other(company: Company) -> None:
    bundles = [company.sign(company.release(number), "anna", "ben") for number in (2, 3)]
    company.finish(bundles[0])

    with pytest.raises(CeremonyRefused, match="two ceremonies made one version"):
        company.finish(bundles[1])


def test_a_ceremony_that_took_longer_than_a_year_is_refused(company: Company) -> None:
    ceremony = company.sign(company.release(2), "anna", "ben")

    with pytest.raises(MetadataRefused, match="expired"):
        finish(ceremony, company.desk, NOW + 400 * DAY)


# -- what is shown before it is signed -------------------------------------------------------------------------------


def test_a_rotation_is_told_in_plain_words(company: Company) -> None:
    ceremony = company.rotate(add=["root-dora"], remove=["root-anna"], thresholds={"targets": 3})
    ceremony = company.join(ceremony, "dora")

    said = explain(ceremony)

    assert said["root"][0] == "From version 1 (good until 2027-03-01) to version 2, good until 2027-03-01."
    text = "\n".join(said["root"])
    assert "root: root-dora (" in text
    assert "root: root-anna (" in text
    assert "is removed." in text
    assert "targets: 3 of 3 keys must sign, before it was 2 of 3." in text
    assert "targets: no key may be lost" in text


def test_a_release_is_told_with_the_digest_of_its_bundle(company: Company) -> None:
    ceremony = company.release(2)
    target = json.loads(ceremony.parts[ROLE])["signed"]["targets"]["models/digits/2.0.0/bundle.json"]

    said = explain(ceremony)

    assert (
        f"models/digits/2.0.0/bundle.json is added: release 2, bundle SHA-256 {target['hashes']['sha256']}."
        in said[ROLE]
    )


def test_every_holder_reads_the_same_digest_until_a_byte_changes(company: Company) -> None:
    ceremony = company.release(2)
    signed = company.sign(ceremony, "anna")
    other = company.release(3)

    assert digest(ceremony) == digest(signed)
    assert digest(other) != digest(ceremony)
    assert len(digest(ceremony).split()) == 5


def changed(ceremony: Ceremony, part: str, change: Callable[[Targets], object]) -> Ceremony:
    """Return the ceremony as somebody on the way made it."""
    document: Metadata[Targets] = Metadata.from_bytes(ceremony.parts[part].encode())
    change(document.signed)
    return msgspec.structs.replace(ceremony, parts={**ceremony.parts, part: document.to_bytes().decode()})


def test_a_release_that_would_get_another_content_is_not_signed(company: Company) -> None:
    def exchange(targets: Targets) -> None:
        path = "models/digits/1.0.0/bundle.json"
        targets.targets[path] = TargetFile.from_data(path, b"another bundle", ["sha256"])

    with pytest.raises(MetadataRefused, match="would get another content"):
        explain(changed(company.release(2), ROLE, exchange))


def test_targets_that_would_name_another_assignment_key_are_not_signed(company: Company) -> None:
    def exchange(targets: Targets) -> None:
        path = "keys/assignment.json"
        targets.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])

    ceremony = company.join(company.rotate(add=[f"{ROLE}-dora"]), "dora")

    with pytest.raises(CeremonyRefused, match=r"assignment key .* sign nothing"):
        explain(changed(ceremony, "targets", exchange))


def test_a_role_that_would_sign_more_than_its_model_is_not_signed(company: Company) -> None:
    def widen(targets: Targets) -> None:
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        targets.delegations.roles[ROLE].paths = ["models/*/*/*"]

    ceremony = company.join(company.rotate(add=[f"{ROLE}-dora"]), "dora")

    with pytest.raises(CeremonyRefused, match="more than releases of its model"):
        explain(changed(ceremony, "targets", widen))


# -- a file that was changed on the way ------------------------------------------------------------------------------


def test_a_key_that_was_exchanged_on_the_way_is_noticed_by_its_proof(company: Company) -> None:
    ceremony = company.join(company.rotate(add=["root-dora", "root-emil"], remove=["root-anna"]), "dora")
    raw = msgspec.json.decode(encode_ceremony(ceremony))
    raw["joined"][0]["name"] = "root-emil"

    with pytest.raises(CeremonyRefused, match="root-emil in the file is damaged or was exchanged"):
        parse_ceremony(msgspec.json.encode(raw))


def test_a_key_that_somebody_made_in_anothers_name_is_noticed_by_the_other(company: Company, tmp_path: Path) -> None:
    begun = company.rotate(add=["root-dora"], remove=["root-anna"])
    mine = company.join(begun, "dora")
    theirs, _ = join(begun, tmp_path / "mallory", "dora", NOW)

    with pytest.raises(CeremonyRefused, match="another key as root-dora"):
        sign(theirs, company.of("dora"))

    assert joined_digest(mine) != joined_digest(theirs)


def test_a_ceremony_from_another_root_is_refused_by_everybody_who_knows_one(company: Company, tmp_path: Path) -> None:
    foreign = Company(tmp_path / "foreign")
    begun = foreign.join(foreign.create(), *HOLDERS)
    foreign.finish(foreign.sign(begun, *HOLDERS))
    ceremony = foreign.rotate(add=["root-dora"])

    for begun, holder in ((ceremony, "dora"), (company.create(), "anna")):
        with pytest.raises(CeremonyRefused, match="compare the digests aloud"):
            join(begun, company.of("anna"), holder, NOW)


def test_a_file_whose_trust_lacks_signatures_is_refused(company: Company) -> None:
    ceremony = company.release(2)
    root = json.loads(ceremony.trust.root)
    root["signatures"] = root["signatures"][:1]
    forged = msgspec.structs.replace(ceremony, trust=msgspec.structs.replace(ceremony.trust, root=json.dumps(root)))

    with pytest.raises(ThresholdNotMet):
        parse_ceremony(encode_ceremony(forged))


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"v": 2}', b"x" * (4 * 1024 * 1024 + 1)])
def test_what_is_no_ceremony_file_is_refused(raw: bytes) -> None:
    with pytest.raises(CeremonyRefused, match="ceremony file"):
        parse_ceremony(raw)


# -- rotation, loss and theft ----------------------------------------------------------------------------------------


def test_a_root_key_is_replaced_and_the_old_one_counts_no_more(company: Company) -> None:
    ceremony = company.join(company.rotate(add=["root-dora"], remove=["root-anna"]), "dora")
    with pytest.raises(ThresholdNotMet):
        finish(company.sign(ceremony, "ben", "anna"), company.desk, NOW)

    company.finish(company.sign(ceremony, "ben", "chris"))

    assert company.push()
    assert company.root().version == 2
    again = company.rotate(renew=("root",))
    assert can_sign(again, company.of("anna")) == []
    assert [key.name for key in can_sign(again, company.of("dora"))] == ["root-dora"]


def test_a_removed_key_keeps_its_name_and_is_never_used_again(company: Company) -> None:
    company.finish(
        company.sign(company.join(company.rotate(add=["root-dora"], remove=["root-anna"]), "dora"), "ben", "chris")
    )

    with pytest.raises(CeremonyRefused, match="there was a key root-anna before"):
        company.rotate(add=["root-anna"])
    with pytest.raises(CeremonyRefused, match="no key 'root-anna' is in force"):
        company.rotate(remove=["root-anna"])


def test_all_root_keys_are_replaced_by_old_and_new_holders_together(company: Company) -> None:
    new = ("dora", "emil", "fay")
    ceremony = company.rotate(add=[f"root-{each}" for each in new], remove=[f"root-{each}" for each in HOLDERS])
    ceremony = company.join(ceremony, *new)

    ceremony = company.sign(ceremony, "anna", "dora", "emil")
    with pytest.raises(ThresholdNotMet):
        company.finish(ceremony)
    ceremony = company.sign(ceremony, "chris")

    company.finish(ceremony)
    assert company.push()


def test_targets_keys_are_replaced_by_the_root_holders_although_all_are_lost(company: Company) -> None:
    for holder in HOLDERS:
        (company.of(holder) / "keys" / f"targets-{holder}.pem").unlink()
    new = ("dora", "emil")
    ceremony = company.rotate(add=[f"targets-{each}" for each in new], remove=[f"targets-{each}" for each in HOLDERS])

    ceremony = company.sign(company.join(ceremony, *new), "anna", "ben", *new)

    company.finish(ceremony)
    assert company.push()


def test_release_keys_are_replaced_at_once_although_all_are_lost_and_what_is_published_stays(company: Company) -> None:
    for holder in HOLDERS:
        (company.of(holder) / "keys" / f"{ROLE}-{holder}.pem").unlink()
    new = ("dora", "emil")
    ceremony = company.rotate(add=[f"{ROLE}-{each}" for each in new], remove=[f"{ROLE}-{each}" for each in HOLDERS])
    ceremony = company.sign(company.join(ceremony, *new), "anna", "ben", *new)
    company.finish(ceremony)

    assert company.push()

    assert [one.release for one in company.repository().releases()] == [1]
    assert set(ceremony.parts) == {"targets", ROLE}
    company.finish(company.sign(company.release(2), *new))
    assert company.publish(2)


def test_release_keys_that_come_without_their_release_are_refused_by_the_controller(company: Company) -> None:
    ceremony = company.rotate(add=[f"{ROLE}-dora", f"{ROLE}-emil"], remove=[f"{ROLE}-{each}" for each in HOLDERS])
    company.finish(company.sign(company.join(ceremony, "dora", "emil"), "anna", "ben", "dora", "emil"))
    offline = load_offline(company.desk)

    with pytest.raises(ThresholdNotMet):
        company.repository().accept_offline(offline.root, offline.targets, offline.keys, NOW)

    assert [one.release for one in company.repository().releases()] == [1]


def test_a_re_signed_release_that_says_something_else_is_refused_by_the_controller(company: Company) -> None:
    ceremony = company.rotate(add=[f"{ROLE}-dora", f"{ROLE}-emil"], remove=[f"{ROLE}-{each}" for each in HOLDERS])
    ceremony = company.join(ceremony, "dora", "emil")

    def smuggle(targets: Targets) -> None:
        path = "models/digits/9.0.0/bundle.json"
        target = TargetFile.from_data(path, b"{}", ["sha256"])
        target.unrecognized_fields["custom"] = {"release": 9}
        targets.targets[path] = target

    company.finish(company.sign(changed(ceremony, ROLE, smuggle), "anna", "ben", "dora", "emil"))

    with pytest.raises(MetadataRefused, match="not as published"):
        company.push()


def test_the_controller_goes_on_with_its_keys_until_the_next_are_in_force(company: Company) -> None:
    before = create_online_keys(company.data)
    following = create_next_online_keys(company.data)
    ceremony = company.sign(company.rotate(online=following), "anna", "chris")
    company.finish(ceremony)
    assert company.repository().refresh_online(NOW + timedelta(hours=13))
    assert create_online_keys(company.data) == before

    assert company.push()

    assert create_online_keys(company.data) == following
    assert not (company.data / "keys" / "next").exists()
    assert company.repository().refresh_online(NOW + timedelta(hours=13))
    assert {"snapshot", "timestamp"} <= {line.split()[2] for line in explain(ceremony)["root"][1:]}


def test_online_keys_of_a_stranger_are_refused_by_the_controller(company: Company, tmp_path: Path) -> None:
    theirs = create_online_keys(tmp_path / "elsewhere")
    company.finish(company.sign(company.rotate(online=theirs), "anna", "chris"))

    with pytest.raises(MetadataRefused, match="is not this controller's"):
        company.push()


def test_a_controller_that_missed_two_roots_takes_both_although_the_first_has_run_out(company: Company) -> None:
    company.finish(company.sign(company.rotate(renew=("root",)), "anna", "ben"))
    company.now = NOW + 370 * DAY
    company.finish(company.sign(company.rotate(renew=("root", "targets", ROLE)), "ben", "chris"))

    assert company.push()

    messages = {message.role: message.files for message in company.repository().trust_messages()}
    assert list(messages["root"]) == ["1.root.json", "2.root.json", "3.root.json"]


def test_a_controller_takes_no_root_that_skips_one(company: Company) -> None:
    for _ in range(2):
        company.finish(company.sign(company.rotate(renew=("root",)), "anna", "ben"))
    offline = load_offline(company.desk)

    with pytest.raises(VersionConflict):
        company.repository().accept_offline(offline.root, offline.targets, offline.keys, NOW)


def test_a_holder_who_missed_a_ceremony_accepts_the_next_if_his_keys_vouch_for_it(company: Company) -> None:
    company.finish(company.sign(company.rotate(renew=("root",)), "anna", "ben"), everywhere=False)

    ceremony = company.sign(company.rotate(renew=("root",)), "chris", "anna")

    company.finish(ceremony)
    assert company.root().version == 3


def test_a_ceremony_that_starts_from_an_older_root_than_a_holder_knows_is_refused(company: Company) -> None:
    stale = company.rotate(renew=("targets",))
    company.finish(company.sign(company.rotate(renew=("root",)), "anna", "ben"))

    with pytest.raises(CeremonyRefused, match="knows root 2"):
        company.sign(stale, "chris")


def test_nothing_to_change_is_nothing_to_begin(company: Company) -> None:
    with pytest.raises(CeremonyRefused, match="nothing would change"):
        company.rotate()


def test_too_few_keys_for_the_threshold_are_refused_at_the_beginning(company: Company) -> None:
    with pytest.raises(CeremonyRefused, match="root would have 1 keys, of which 2 must sign"):
        company.rotate(remove=["root-anna", "root-ben"])


# -- what is still possible ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "stolen", "standing", "can", "thief"),
    [
        ({}, {}, Standing.SOUND, True, False),
        (["root-anna"], [], Standing.REPLACE, True, False),
        (["root-anna", "root-ben"], [], Standing.ANEW, False, False),
        ([], ["root-anna"], Standing.REPLACE, True, False),
        ([], ["root-anna", "root-ben"], Standing.ANEW, True, True),
        (["targets-anna", "targets-ben"], [], Standing.REPLACE, False, False),
        (["targets-anna", "targets-ben", "root-anna", "root-ben"], [], Standing.ANEW, False, False),
        ([], [f"{ROLE}-anna", f"{ROLE}-ben"], Standing.REPLACE, True, True),
    ],
)
def test_what_is_still_possible_follows_from_thresholds(
    company: Company, lost: list[str], stolen: list[str], standing: Standing, can: bool, thief: bool
) -> None:
    base = ceremony_begin.survey("s", company.desk, {}, NOW)
    held = ceremony_begin.key_roles(base)
    gone, taken = ({ceremony_begin.find_key(held, base.names, each) for each in said} for said in (lost, stolen))
    role = next(iter([*lost, *stolen]), "root-").rsplit("-", 1)[0]

    found = {each.role: each for each in assess(base, gone, taken)}[role]

    assert (found.standing, found.can_sign, found.thief_can_sign) == (standing, can, thief)
    assert bool(found.advice) == (standing is not Standing.SOUND)


def test_no_step_needs_or_writes_a_private_key_that_is_not_its_holders(company: Company) -> None:
    before = secrets_of(company)

    company.finish(company.sign(company.join(company.rotate(add=["targets-dora"]), "dora"), "anna", "ben"))

    assert len(secrets_of(company)) == len(before) + 1
    assert [path.name for path in (company.of("dora") / "keys").glob("*.pem")] == ["targets-dora.pem"]
    assert steps.stage(company.rotate(renew=("root",))) is Stage.SIGNING


# -- mixers ------------------------------------------------------------------------------------------------------------


def mixer_key() -> tuple[str, bytes]:
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return key_id(public), public


def mixers(company: Company) -> dict[str, bytes]:
    return parse_keys(load_offline(company.desk).keys).mixers


def test_holders_read_to_which_mixer_devices_will_seal_and_devices_do(company: Company) -> None:
    name, public = mixer_key()

    ceremony = company.rotate(mixers={name: public})
    words = explain(ceremony)
    company.finish(company.sign(ceremony, "anna", "chris"))

    assert words["targets"][1:] == [f"Devices seal their metrics to mixer key {name}."]
    assert "root" not in words
    assert company.push()
    assert company.repository().mixer_keys() == {name}
    assert company.repository().assignment_keys() == {create_online_keys(company.data).assignment.keyid}


def test_a_mixer_stays_through_new_online_keys_and_new_holders_and_goes_when_it_is_named(company: Company) -> None:
    old, new = mixer_key(), mixer_key()
    company.finish(company.sign(company.rotate(mixers=dict([old])), "anna", "ben"))

    rotated = company.rotate(online=create_next_online_keys(company.data))
    words = explain(rotated)
    company.finish(company.sign(rotated, "anna", "ben"))
    kept = mixers(company)
    exchanged = company.rotate(mixers=dict([new]), remove_mixers=(old[0][:8],))
    exchange = explain(exchanged)
    company.finish(company.sign(exchanged, "ben", "chris"))
    last = company.rotate(remove_mixers=(new[0],))

    assert kept == dict([old])
    assert not any("mixer" in line for line in words["targets"])
    assert exchange["targets"][1:] == [
        f"Devices seal their metrics to mixer key {new[0]}.",
        f"Devices seal nothing to mixer key {old[0]} any more.",
    ]
    assert mixers(company) == dict([new])
    assert "No mixer is left" in explain(last)["targets"][-1]


def test_the_first_ceremony_names_mixers_before_and_after_its_holders_join(tmp_path: Path) -> None:
    company, (name, public) = Company(tmp_path), mixer_key()
    online = create_online_keys(company.data)
    begun = ceremony_begin.begin_create("c0", KEYS, {}, online, NOW, {name: public})

    ceremony = company.join(begun, *HOLDERS)
    company.finish(company.sign(ceremony, "anna", "ben"))

    assert f"Devices seal their metrics to mixer key {name}." in plan(begun)
    assert f"Devices seal their metrics to mixer key {name}." in explain(ceremony)["targets"]
    assert mixers(company) == {name: public}


def test_a_mixer_that_somebody_on_the_way_put_into_the_keys_is_read_aloud_or_refused(company: Company) -> None:
    (name, public), (thief, stolen) = mixer_key(), mixer_key()
    ceremony = company.rotate(mixers={name: public})
    keys = parse_keys(ceremony.keys.encode())
    forged = encode_keys(AssignmentKeys(keys=keys.keys, mixers={**keys.mixers, thief: stolen}))

    def exchange(targets: Targets) -> None:
        targets.targets["keys/assignment.json"] = TargetFile.from_data("keys/assignment.json", forged, ["sha256"])

    alone = msgspec.structs.replace(ceremony, keys=forged.decode())
    whole = changed(alone, "targets", exchange)
    hidden = forged.replace(b'"mixers"', b'"later": 1, "mixers"')

    with pytest.raises(CeremonyRefused, match="sign nothing"):
        explain(alone)
    assert f"Devices seal their metrics to mixer key {thief}." in explain(whole)["targets"]
    assert digest(whole) != digest(ceremony)
    forged = hidden
    with pytest.raises(CeremonyRefused, match="more than these words"):
        explain(changed(msgspec.structs.replace(ceremony, keys=hidden.decode()), "targets", exchange))


def test_a_file_whose_mixers_are_none_and_an_unknown_one_to_remove_are_refused(company: Company) -> None:
    name, public = mixer_key()
    ceremony = company.rotate(mixers={name: public})

    with pytest.raises(CeremonyRefused, match="mixer key"):
        parse_ceremony(encode_ceremony(msgspec.structs.replace(ceremony, mixers={"f" * 16: public})))
    with pytest.raises(CeremonyRefused, match="there are none"):
        company.rotate(remove_mixers=("ffffffff",))
    with pytest.raises(CeremonyRefused, match="nothing would change"):
        company.rotate()
