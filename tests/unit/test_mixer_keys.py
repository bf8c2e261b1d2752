"""A mixer's keys: its folder and its card, and how the offline keys say which of them devices seal to."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root, Targets
from typer.testing import CliRunner

from muster_controller.cli.init import init
from muster_controller.cli.mixer_identity import sign
from muster_controller.mixer.folder import MixerFolder, MixerFolderInvalid
from muster_controller.mixer_card import KEYS_MAX, check_keys, encode_card, parse_card
from muster_controller.registry.errors import FolderInvalid, MetadataRefused, ThresholdNotMet
from muster_controller.registry.operator import (
    add_model,
    change_mixers,
    init_operator,
    load_offline,
    rotate_online_keys,
)
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import AssignmentKeys, encode_keys, parse_keys
from muster_shared.enrolment import Admitted
from muster_shared.errors import WireError
from muster_shared.ids import FleetId, ModelName, Sha256
from muster_shared.metrics import Cell, Kind, Window, key_id, pack
from muster_shared.sealing import open_sealed, seal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def some_keys(count: int) -> dict[str, bytes]:
    made = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(count)]
    return {key_id(each): each for each in made}


@pytest.fixture
def mixer(tmp_path: Path) -> MixerFolder:
    return MixerFolder.create(tmp_path / "mixer", "m1")


# -- the folder ------------------------------------------------------------------------------------------------------


def test_what_is_sealed_to_the_card_opens_with_the_folder(mixer: MixerFolder) -> None:
    window = Window(
        cell=Cell(model=ModelName("digits"), version="1.0.0", device_class="x"),
        period_start=3600,
        period_s=3600,
        nonce="00" * 16,
        units={Kind.INPUTS: pack({0: 64})},
    )

    raw = seal(window, parse_card(encode_card(mixer.card())).public_key)

    assert open_sealed(raw, mixer.seal_keys()) == window


def test_every_private_key_is_for_its_owner_alone_and_none_is_in_the_card(mixer: MixerFolder) -> None:
    private = [mixer.path / "identity.key", mixer.path / "client-id", *(mixer.path / "seal").iterdir()]

    assert len(private) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE(mixer.path.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (mixer.path / "mixer.json").read_bytes()


def test_a_key_that_others_can_read_is_refused(mixer: MixerFolder) -> None:
    (mixer.path / "seal" / f"{mixer.card().key_id}.key").chmod(0o640)
    (mixer.path / "identity.key").chmod(0o644)

    with pytest.raises(MixerFolderInvalid, match="others can read it"):
        mixer.seal_keys()
    with pytest.raises(MixerFolderInvalid, match="others can read it"):
        mixer.identity_key()


def test_a_folder_is_made_once(mixer: MixerFolder) -> None:
    before = mixer.card()

    with pytest.raises(MixerFolderInvalid, match="another folder"):
        MixerFolder.create(mixer.path, "m2")

    assert mixer.card() == before


def test_a_rotated_mixer_opens_what_was_sealed_to_either_key_until_the_old_one_is_destroyed(mixer: MixerFolder) -> None:
    old = mixer.card().key_id

    new = mixer.rotate().key_id

    assert set(mixer.seal_keys()) == {old, new}
    with pytest.raises(MixerFolderInvalid, match="newest"):
        mixer.retire(new)
    mixer.retire(old)
    assert set(mixer.seal_keys()) == {new}
    with pytest.raises(MixerFolderInvalid, match="no key"):
        mixer.retire(old)


def test_a_second_mixer_shares_the_key_for_sealing_and_nothing_else(mixer: MixerFolder, tmp_path: Path) -> None:
    shared = mixer.path / "seal" / f"{mixer.card().key_id}.key"

    second = MixerFolder.create(tmp_path / "second", "m2", seal_key=shared)
    equal_at_first = second.card().public_key == mixer.card().public_key
    new = mixer.rotate().key_id
    second.rotate(seal_key=mixer.path / "seal" / f"{new}.key")

    assert equal_at_first
    assert second.card().identity != mixer.card().identity
    assert set(second.seal_keys()) == set(mixer.seal_keys())


def test_a_folder_that_lost_the_key_of_its_card_or_has_one_under_a_wrong_name_says_so(mixer: MixerFolder) -> None:
    path = mixer.path / "seal" / f"{mixer.card().key_id}.key"

    path.rename(path.with_name("0123456789abcdef.key"))
    with pytest.raises(MixerFolderInvalid, match="another key than its name"):
        mixer.seal_keys()
    path.with_name("0123456789abcdef.key").unlink()
    with pytest.raises(MixerFolderInvalid, match="bring it back"):
        mixer.seal_keys()


def test_what_was_admitted_for_another_mixer_is_refused(mixer: MixerFolder) -> None:
    admitted = Admitted(
        mixer="m2", fleet=FleetId("f"), identity_fingerprint=Sha256("0" * 64), device_url="https://c:8443", ca=""
    )

    with pytest.raises(MixerFolderInvalid, match="m2 was admitted"):
        mixer.admit(admitted)
    mixer.admit(msgspec.structs.replace(admitted, mixer="m1"))

    assert mixer.admitted().device_url == "https://c:8443"
    assert mixer.connection() is None


# -- the card --------------------------------------------------------------------------------------------------------


def test_a_card_with_a_key_that_everybody_can_open_or_of_another_kind_is_refused(mixer: MixerFolder) -> None:
    card = mixer.card()
    ed25519 = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = mixer.identity_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    for wrong in (
        msgspec.structs.replace(card, public_key=bytes(32)),
        msgspec.structs.replace(card, public_key=b"\1" + bytes(31)),
        msgspec.structs.replace(card, public_key=card.public_key[:31]),
        msgspec.structs.replace(card, mixer="m.1"),
        msgspec.structs.replace(card, identity=ed25519.decode()),
        msgspec.structs.replace(card, identity=private.decode()),
    ):
        with pytest.raises(WireError):
            parse_card(encode_card(wrong))
    assert parse_card(encode_card(card)) == card


@given(st.binary(max_size=300))
def test_whatever_is_no_card_is_refused_in_our_words(raw: bytes) -> None:
    with pytest.raises(WireError):
        parse_card(raw)


def test_keys_under_a_wrong_name_and_too_many_are_refused() -> None:
    keys = some_keys(KEYS_MAX + 1)
    first, second = list(keys)[:2]

    check_keys(dict(list(keys.items())[:KEYS_MAX]))
    with pytest.raises(WireError, match="at most"):
        check_keys(keys)
    with pytest.raises(WireError, match="not called"):
        check_keys({first: keys[second]})


# -- the offline keys ------------------------------------------------------------------------------------------------


class Desk:
    """An operator with all keys at hand, and a controller that took the first metadata."""

    def __init__(self, folder: Path, mixers: dict[str, bytes] | None = None) -> None:
        self.operator, self.data = folder / "operator", folder / "data"
        offline = init_operator(self.operator, [ModelName("digits")], create_online_keys(self.data), NOW, mixers=mixers)
        self.repository = TufRepository(self.data)
        self.repository.accept_offline(offline.root, offline.targets, offline.keys, NOW)

    @property
    def mixers(self) -> dict[str, bytes]:
        return parse_keys(load_offline(self.operator).keys).mixers

    def versions(self) -> tuple[int, int]:
        offline = load_offline(self.operator)
        root, targets = Metadata[Root].from_bytes(offline.root), Metadata[Targets].from_bytes(offline.targets)
        return root.signed.version, targets.signed.version


def test_a_fleet_can_begin_with_mixers_and_begins_without(tmp_path: Path) -> None:
    keys = some_keys(2)

    assert Desk(tmp_path / "with", keys).mixers == keys
    assert Desk(tmp_path / "without").mixers == {}


def test_mixers_come_and_go_in_the_next_targets_and_the_controller_takes_them(tmp_path: Path) -> None:
    desk, keys = Desk(tmp_path), some_keys(3)
    first, second, third = keys

    change_mixers(desk.operator, {first: keys[first], second: keys[second]}, [], NOW)
    offline = change_mixers(desk.operator, {third: keys[third]}, [first[:8]], NOW)

    assert desk.mixers == {second: keys[second], third: keys[third]}
    assert desk.versions() == (1, 3), "the root stays"
    assert desk.repository.accept_offline(offline.root, offline.targets, offline.keys, NOW)
    assert desk.repository.mixer_keys() == {second, third}


def test_rotating_the_online_keys_and_adding_a_model_keep_the_mixers(tmp_path: Path) -> None:
    keys = some_keys(2)
    desk = Desk(tmp_path, keys)

    rotate_online_keys(desk.operator, create_online_keys(tmp_path / "other"), NOW)
    add_model(desk.operator, ModelName("ocr"), NOW)

    assert desk.mixers == keys
    assert len(parse_keys(load_offline(desk.operator).keys).keys) == 1


def test_without_the_targets_keys_nobody_changes_where_devices_seal(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for path in (desk.operator / "keys").glob("targets-*.pem"):
        path.unlink()

    with pytest.raises(ThresholdNotMet):
        change_mixers(desk.operator, some_keys(1), [], NOW)

    assert desk.mixers == {}


def test_a_controller_that_puts_its_own_mixer_into_the_keys_is_not_believed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, some_keys(1))
    offline = load_offline(desk.operator)
    forged = encode_keys(AssignmentKeys(keys=parse_keys(offline.keys).keys, mixers=some_keys(1)))

    with pytest.raises(MetadataRefused):
        desk.repository.accept_offline(offline.root, offline.targets, forged, NOW)


def test_what_changes_nothing_and_what_names_no_key_is_refused(tmp_path: Path) -> None:
    keys = some_keys(1)
    desk = Desk(tmp_path, keys)
    (name,) = keys

    with pytest.raises(FolderInvalid, match="already"):
        change_mixers(desk.operator, keys, [], NOW)
    for wrong in ("ffffffff", name[:7], ""):
        with pytest.raises(FolderInvalid, match="no mixer key"):
            change_mixers(desk.operator, {}, [wrong], NOW)
    assert desk.versions() == (1, 1)


def test_one_command_begins_a_fleet_with_a_mixer(mixer: MixerFolder, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(init)
    app.command()(sign)
    second = MixerFolder.create(tmp_path / "second", "m2")
    words = ["init", str(tmp_path / "o"), "--controller-data", str(tmp_path / "d"), "--mixer", str(mixer.path)]

    begun = CliRunner().invoke(app, words)
    signed = CliRunner().invoke(app, ["sign", str(second.path / "mixer.json"), "--operator", str(tmp_path / "o")])

    assert begun.exit_code == 0, begun.output
    assert f"Devices seal their metrics to mixer key {mixer.card().key_id}." in begun.output
    assert signed.exit_code == 0, signed.output
    named = parse_keys(load_offline(tmp_path / "o").keys).mixers
    assert named == {each.key_id: each.public_key for each in (mixer.card(), second.card())}
