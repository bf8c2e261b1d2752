"""The device's end of the trust chain, against what a real operator and controller sign."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from harness.bundles import write_bundle
from muster_agent.errors import CheckFailed, DiskFull, MetadataIncomplete
from muster_agent.io.trust import CANDIDATE_BYTES_MAX, RETRY_S, TrustClient
from muster_agent.io.trust_check import Checks
from muster_agent.io.trust_state import Checked, Envelope, Opened, Question
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import (
    add_model,
    init_operator,
    revoke_release,
    rotate_online_keys,
    sign_release,
)
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import KEYS_ROLE, KEYS_TARGET, Assignment
from muster_shared.bundle import (
    digest,
    target_path,
)
from muster_shared.errors import (
    AssignmentForged,
    MetadataExpired,
    MetadataReplayed,
    MetadataUntrusted,
    TrustError,
    WireError,
)
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.messages import TrustFiles

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DIGITS, OCR = ModelName("digits"), ModelName("ocr")
DIGITS_1, DIGITS_2, OCR_1 = target_path(DIGITS, "1.0.0"), target_path(DIGITS, "2.0.0"), target_path(OCR, "1.0.0")

Messages = dict[str, TrustFiles]


@dataclass
class World:
    """An operator, a controller, and devices that share one clock. Nothing arrives unless it is delivered."""

    folder: Path
    now: datetime = NOW

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def operator(self) -> Path:
        return self.folder / "operator"

    def messages(self) -> Messages:
        return {message.role: message for message in TufRepository(self.data).trust_messages()}

    def device(self, name: str = "device", bootstrap: bytes | None = None) -> TrustClient:
        """Return a device; the same name again is the same device after a restart."""
        root = bootstrap or (self.operator / "metadata/1.root.json").read_bytes()
        return TrustClient(self.folder / name, root, lambda: self.now)

    def device_with(self, checker: "Counted", name: str = "device") -> TrustClient:
        root = (self.operator / "metadata/1.root.json").read_bytes()
        return TrustClient(self.folder / name, root, lambda: self.now, checker, lambda: self.now.timestamp())

    def bundle(self, model: ModelName, release: int) -> Path:
        return write_bundle(self.folder, model, release)

    def publish(self, model: ModelName, release: int) -> Messages:
        folder = self.bundle(model, release)
        signed = sign_release(self.operator, folder, None, self.now)
        manifest = (folder / "bundle.json").read_bytes()
        TufRepository(self.data).accept_release(signed.role, signed.metadata, manifest, self.now)
        return self.messages()

    def renew(self) -> Messages:
        TufRepository(self.data).refresh_online(self.now)
        return self.messages()

    def rotate(self) -> Messages:
        """Replace every online key, as after a controller was stolen."""
        shutil.rmtree(self.data / "keys")
        offline = rotate_online_keys(self.operator, create_online_keys(self.data), self.now)
        TufRepository(self.data).accept_offline(offline.root, offline.targets, offline.keys, self.now)
        return self.messages()

    def assignment(self) -> bytes:
        assignment = Assignment(
            fleet=FleetId("f"), device=DeviceId("d"), counter=1, issued_at=0.0, expires_at=1.0, models=()
        )
        return TufRepository(self.data).sign_assignment(assignment)

    def stolen_controller(self) -> "StolenController":
        return StolenController(self)


@dataclass
class Counted:
    """Verifies here, as long as there is somebody to do it."""

    here: bool = True
    asked: int = 0

    def check(self, question: Question) -> Checked:
        self.ask()
        return Checks().check(question)

    def open(self, envelope: Envelope) -> Opened:
        self.ask()
        return Checks().open(envelope)

    def ask(self) -> None:
        self.asked += 1
        if not self.here:
            raise CheckFailed("killed for want of memory")


@dataclass
class StolenController:
    """Someone with both online keys and no offline key."""

    world: World

    def publish(self, **roles: bytes) -> Messages:
        """Return messages in which `roles` (underscores for dashes) have other bytes, signed along online."""
        messages = self.world.messages()
        snapshot: Metadata[Snapshot] = Metadata.from_bytes(text(messages["snapshot"]).encode())
        timestamp: Metadata[Timestamp] = Metadata.from_bytes(text(messages["timestamp"]).encode())
        for name, data in roles.items():
            role = name.replace("_", "-")
            document: Metadata[Targets] = Metadata.from_bytes(data)
            meta = snapshot.signed.meta[f"{role}.json"]
            meta.version, meta.length, meta.hashes = document.signed.version, None, None
            messages[role] = TrustFiles(role=role, files={f"{meta.version}.{role}.json": data.decode()})
        snapshot.signed.version += 1
        snapshot.sign(load_signer(self.world.data / "keys/snapshot.pem"))
        timestamp.signed.version += 1
        meta = timestamp.signed.snapshot_meta
        meta.version, meta.length, meta.hashes = snapshot.signed.version, None, None
        timestamp.sign(load_signer(self.world.data / "keys/timestamp.pem"))
        name = f"{snapshot.signed.version}.snapshot.json"
        messages["snapshot"] = TrustFiles(role="snapshot", files={name: snapshot.to_bytes().decode()})
        messages["timestamp"] = TrustFiles(role="timestamp", files={"timestamp.json": timestamp.to_bytes().decode()})
        return messages


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World(tmp_path_factory.mktemp("template"))
    offline = init_operator(world.operator, [DIGITS, OCR], create_online_keys(world.data), NOW)
    TufRepository(world.data).accept_offline(offline.root, offline.targets, offline.keys, NOW)
    world.publish(DIGITS, 1)
    return world.folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> World:
    shutil.copytree(template, tmp_path / "world")
    return World(tmp_path / "world")


def text(message: TrustFiles) -> str:
    return next(iter(message.files.values()))


def deliver(device: TrustClient, messages: Messages, *roles: str) -> bool:
    """Offer the messages of `roles` (or all); return whether anything was news."""
    return any([device.offer(message) for role, message in messages.items() if not roles or role in roles])


def ready(world: World, name: str = "device") -> TrustClient:
    device = world.device(name)
    deliver(device, world.messages())
    device.refresh()
    return device


def forged(data: str, *keys: Path) -> bytes:
    """Return the metadata `data` signed by `keys` alone."""
    document: Metadata[Targets] = Metadata.from_bytes(data.encode())
    document.signatures.clear()
    for key in keys:
        document.sign(load_signer(key), append=True)
    return document.to_bytes()


# -- the way it should be --------------------------------------------------------------------------------------------


def test_every_release_of_every_model_is_in_the_view(world: World) -> None:
    world.publish(DIGITS, 2)
    world.publish(OCR, 1)

    view = ready(world).view()

    assert view is not None
    assert set(view.targets) == {DIGITS_1, DIGITS_2, OCR_1}
    manifest = (world.folder / "ocr-1/bundle.json").read_bytes()
    assert (view.targets[OCR_1].sha256, view.targets[OCR_1].length) == (digest(manifest), len(manifest))


def test_metadata_may_arrive_in_any_order(world: World) -> None:
    device = ready(world)
    messages = world.publish(DIGITS, 2)

    for role in sorted(messages, key=lambda role: role == "timestamp"):
        deliver(device, messages, role)
        view = device.refresh()

    assert DIGITS_2 in view.targets


def test_incomplete_metadata_waits_and_then_completes(world: World) -> None:
    device = world.device()
    messages = world.messages()
    late = ["snapshot", "targets", KEYS_ROLE, "release-digits"]
    deliver(device, messages, "root")
    with pytest.raises(MetadataIncomplete, match="timestamp"):
        device.refresh()

    deliver(device, messages, "timestamp")
    for role in late:
        with pytest.raises(MetadataIncomplete):
            device.refresh()
        assert device.view() is None
        deliver(device, messages, role)

    assert set(device.refresh().targets) == {DIGITS_1}


def test_incomplete_news_leave_the_old_view(world: World) -> None:
    device = ready(world)
    before = device.view()
    messages = world.publish(DIGITS, 2)

    deliver(device, messages, "timestamp", "snapshot")
    with pytest.raises(MetadataIncomplete, match="release-digits"):
        device.refresh()

    assert device.view() == before
    deliver(device, messages, "release-digits")
    assert DIGITS_2 in device.refresh().targets


def test_a_revoked_release_leaves_the_view(world: World) -> None:
    world.publish(DIGITS, 2)
    device = ready(world)
    revoked = revoke_release(world.operator, DIGITS, "1.0.0", None, NOW)
    TufRepository(world.data).accept_release(revoked.role, revoked.metadata, None, NOW)

    deliver(device, world.messages())

    assert set(device.refresh().targets) == {DIGITS_2}


def test_a_model_that_is_added_later_arrives(world: World) -> None:
    device = ready(world)
    offline = add_model(world.operator, ModelName("vad"), NOW)
    TufRepository(world.data).accept_offline(offline.root, offline.targets, offline.keys, NOW)
    messages = world.publish(ModelName("vad"), 1)

    deliver(device, messages)

    assert target_path(ModelName("vad"), "1.0.0") in device.refresh().targets


def test_nothing_new_is_not_news_and_costs_no_work(world: World) -> None:
    device = ready(world)
    before = device.refresh()

    assert not deliver(device, world.messages())
    assert device.refresh() is before


# -- replay, freeze, mix-and-match -----------------------------------------------------------------------------------


def test_an_older_timestamp_is_a_replay_and_poisons_nothing(world: World) -> None:
    old = world.messages()
    world.publish(DIGITS, 2)
    device = ready(world)
    before = device.view()

    deliver(device, old)
    for _ in range(2):
        with pytest.raises(MetadataReplayed):
            device.refresh()

    assert device.view() == before
    assert device.open_assignment(world.assignment()).counter == 1
    assert deliver(device, world.messages())
    assert device.refresh() == before


def test_a_replay_is_noticed_after_a_restart(world: World) -> None:
    old = world.messages()
    world.publish(DIGITS, 2)
    ready(world)

    device = world.device()
    deliver(device, old)

    with pytest.raises(MetadataReplayed):
        device.refresh()
    view = device.view()
    assert view is not None
    assert DIGITS_2 in view.targets


def test_a_version_seen_on_the_way_to_a_failure_stays_seen(world: World) -> None:
    device = ready(world)
    old = world.renew()
    deliver(device, world.publish(DIGITS, 2), "timestamp")
    with pytest.raises(MetadataIncomplete):
        device.refresh()

    device = world.device()
    deliver(device, old)

    with pytest.raises(MetadataReplayed):
        device.refresh()


def test_a_snapshot_that_takes_a_release_back_is_a_replay(world: World) -> None:
    first = world.messages()["release-digits"]
    world.publish(DIGITS, 2)
    device = ready(world)

    deliver(device, world.stolen_controller().publish(release_digits=text(first).encode()))
    with pytest.raises(MetadataReplayed):
        device.refresh()

    view = device.view()
    assert view is not None
    assert DIGITS_2 in view.targets


def test_old_files_under_new_names_do_not_mix(world: World) -> None:
    old = world.messages()
    device = ready(world)
    new = world.publish(DIGITS, 2)
    for role in ("snapshot", "release-digits"):
        name = next(iter(new[role].files))
        new[role] = TrustFiles(role=role, files={name: text(old[role])})

    deliver(device, new)

    with pytest.raises(MetadataUntrusted):
        device.refresh()


def test_an_expired_timestamp_is_told_together_with_the_clock(world: World) -> None:
    device = ready(world)
    before = device.view()
    world.now = NOW + DAY + HOUR

    for _ in range(2):
        with pytest.raises(MetadataExpired, match=r"timestamp.*clock, which says 2026-03-02 13:00"):
            device.refresh()

    assert device.view() == before
    deliver(device, world.renew())
    assert device.refresh() == before


@pytest.mark.parametrize("offered", ["a replay", "nonsense"])
def test_a_freeze_is_noticed_behind_whatever_else_is_refused(world: World, offered: str) -> None:
    old = world.messages()
    world.publish(DIGITS, 2)
    device = ready(world)
    before = device.view()
    deliver(
        device, old if offered == "a replay" else {"": TrustFiles(role="timestamp", files={"timestamp.json": "{}"})}
    )
    with pytest.raises((MetadataReplayed, MetadataUntrusted)):
        device.refresh()

    world.now = NOW + DAY + HOUR

    for _ in range(2):
        with pytest.raises(MetadataExpired, match="past its date, and what was offered since is refused"):
            device.refresh()
    deliver(device, old)
    with pytest.raises(MetadataExpired):  # At the first look too, not only when it is remembered.
        device.refresh()
    assert device.view() == before


def test_what_is_refused_before_anything_has_expired_is_told_as_it_is(world: World) -> None:
    old = world.messages()
    world.publish(DIGITS, 2)
    device = ready(world)

    deliver(device, old)
    world.now = NOW + DAY - HOUR

    with pytest.raises(MetadataReplayed):
        device.refresh()


def test_expiry_is_judged_by_the_devices_own_clock(world: World) -> None:
    """Both ways: metadata of 2026 in 2020, and the same in 2031, whatever this machine's date is."""
    device = world.device()
    deliver(device, world.messages())
    world.now = NOW + 5 * 365 * DAY
    with pytest.raises(MetadataExpired, match="root"):
        device.refresh()

    world.now = NOW - 6 * 365 * DAY

    assert DIGITS_1 in device.refresh().targets


def test_a_frozen_controller_is_noticed_after_a_restart_without_any_message(world: World) -> None:
    ready(world)
    world.now = NOW + 2 * DAY

    device = world.device()

    with pytest.raises(MetadataExpired):
        device.refresh()
    assert device.view() is not None


def test_a_model_whose_keys_were_not_renewed_stops_no_other_model(world: World) -> None:
    world.now = NOW + 200 * DAY
    offline = rotate_online_keys(world.operator, create_online_keys(world.data), world.now)
    TufRepository(world.data).accept_offline(offline.root, offline.targets, offline.keys, world.now)
    world.publish(OCR, 1)
    device = ready(world)
    world.now = NOW + 366 * DAY
    messages = world.renew()

    for _ in range(2):
        deliver(device, messages, "timestamp", "snapshot")
        assert set(device.refresh().targets) == {OCR_1}
        assert set(device.withheld()) == {"release-digits"}
        world.now += DAY
        messages = world.renew()


# -- forgery ---------------------------------------------------------------------------------------------------------


def test_a_stolen_controller_cannot_ship_a_release(world: World) -> None:
    device = ready(world)
    document: Metadata[Targets] = Metadata.from_bytes(text(world.messages()["release-digits"]).encode())
    document.signed.targets[DIGITS_2] = TargetFile.from_data(DIGITS_2, b"evil", ["sha256"])
    document.signed.version += 1
    evil = document.to_bytes().decode()
    keys = world.operator / "keys"

    for held in ((), (keys / "release-digits-1.pem",), (keys / "release-ocr-1.pem", keys / "release-ocr-2.pem")):
        deliver(device, world.stolen_controller().publish(release_digits=forged(evil, *held)))
        with pytest.raises(MetadataUntrusted):
            device.refresh()

    two = forged(evil, keys / "release-digits-1.pem", keys / "release-digits-2.pem")
    deliver(device, world.stolen_controller().publish(release_digits=two))
    assert DIGITS_2 in device.refresh().targets


def test_a_release_role_speaks_for_its_own_model_alone(world: World) -> None:
    device = ready(world)
    document: Metadata[Targets] = Metadata.from_bytes(text(world.messages()["release-digits"]).encode())
    document.signed.version += 1
    for path in (OCR_1, KEYS_TARGET, "models/digits/1.0.0/deeper/bundle.json"):
        document.signed.targets[path] = TargetFile.from_data(path, b"evil", ["sha256"])
    keys = [world.operator / f"keys/release-digits-{holder}.pem" for holder in (1, 2)]
    signed = forged(document.to_bytes().decode(), *keys)

    deliver(device, world.stolen_controller().publish(release_digits=signed))

    assert set(device.refresh().targets) == {DIGITS_1}


def test_a_tampered_file_is_refused(world: World) -> None:
    for role in ("timestamp", "snapshot", "targets", "release-digits"):
        device = world.device(f"device-{role}")
        messages = world.messages()
        name = next(iter(messages[role].files))
        tampered = text(messages[role]).replace('"version":', '"x":1,"version":', 1)
        messages[role] = TrustFiles(role=role, files={name: tampered})
        deliver(device, messages)

        with pytest.raises(MetadataUntrusted):
            device.refresh()


def test_tampered_assignment_keys_are_never_used(world: World) -> None:
    device = world.device()
    messages = world.messages()
    messages[KEYS_ROLE] = TrustFiles(role=KEYS_ROLE, files={KEYS_TARGET: '{"keys":{}}'})
    deliver(device, messages)

    with pytest.raises(MetadataIncomplete):
        device.refresh()

    deliver(device, world.messages(), KEYS_ROLE)
    assert device.refresh().keys.keys


def test_a_forged_root_is_refused(world: World, tmp_path: Path) -> None:
    device = ready(world)
    before = device.view()
    stranger = World(tmp_path / "stranger")
    offline = init_operator(stranger.operator, [DIGITS], create_online_keys(stranger.data), NOW)
    TufRepository(stranger.data).accept_offline(offline.root, offline.targets, offline.keys, NOW)

    deliver(device, stranger.rotate())  # Its root 2 is well signed, by keys that mean nothing here.
    with pytest.raises(MetadataUntrusted):
        device.refresh()

    assert device.view() == before
    with pytest.raises(AssignmentForged):
        device.open_assignment(stranger.assignment())


def test_a_bootstrap_that_is_no_root_is_refused(world: World) -> None:
    root = (world.operator / "metadata/1.root.json").read_bytes()

    for broken in (b"", b"{}", root.replace(b'"threshold":2', b'"threshold":1', 1)):
        device = world.device("broken", bootstrap=broken or b" ")
        deliver(device, world.messages())
        with pytest.raises(MetadataUntrusted):
            device.refresh()


def test_a_device_of_another_fleet_forgets_the_view_of_the_first(world: World, tmp_path: Path) -> None:
    ready(world)
    other = World(tmp_path / "other")
    offline = init_operator(other.operator, [OCR], create_online_keys(other.data), NOW)
    TufRepository(other.data).accept_offline(offline.root, offline.targets, offline.keys, NOW)
    messages = other.publish(OCR, 1)

    device = world.device(bootstrap=offline.root)

    assert device.view() is None
    deliver(device, messages)
    assert set(device.refresh().targets) == {OCR_1}


# -- rotation --------------------------------------------------------------------------------------------------------


def test_a_device_that_slept_through_two_root_rotations_catches_up(world: World) -> None:
    device = ready(world)
    for _ in range(2):
        world.now += 40 * DAY
        world.rotate()
    messages = world.messages()

    assert len(messages["root"].files) == 3
    deliver(device, messages)

    assert set(device.refresh().targets) == {DIGITS_1}
    assert device.open_assignment(world.assignment()).counter == 1


def test_old_online_keys_mean_nothing_after_a_rotation(world: World) -> None:
    device = ready(world)
    stolen = world.stolen_controller().publish()
    forged_assignment = world.assignment()
    assert device.open_assignment(forged_assignment).counter == 1

    deliver(device, world.rotate())
    device.refresh()

    with pytest.raises(AssignmentForged):
        device.open_assignment(forged_assignment)
    deliver(device, stolen, "timestamp", "snapshot")
    with pytest.raises(MetadataUntrusted):
        device.refresh()
    assert device.open_assignment(world.assignment()).counter == 1


def test_an_assignment_needs_a_view(world: World) -> None:
    device = world.device()
    with pytest.raises(MetadataUntrusted):
        device.open_assignment(world.assignment())

    device = ready(world)

    assert device.open_assignment(world.assignment()).counter == 1
    with pytest.raises(WireError):
        device.open_assignment(b"{}")


# -- endless data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "files"),
    [
        ("timestamp", {"timestamp.json": "x" * 200_000}),
        ("timestamp", {"1.timestamp.json": "{}"}),
        ("timestamp", {}),
        ("snapshot", {"1.snapshot.json": "{}", "2.snapshot.json": "{}"}),
        ("snapshot", {"1.targets.json": "{}"}),
        ("root", {f"{version}.root.json": "{}" for version in range(1, 1000)}),
        ("root", {"../../etc/passwd": "{}"}),
        ("release-digits", {"1.release-ocr.json": "{}"}),
        ("unheard-of", {"1.unheard-of.json": "{}"}),
        ("../root", {"1.root.json": "{}"}),
        (KEYS_ROLE, {"keys/other.json": "{}"}),
        ("targets", {"1.targets.json": "\ud800"}),
    ],
)
def test_what_no_role_may_send_is_refused_at_the_door(world: World, role: str, files: dict[str, str]) -> None:
    device = ready(world)

    with pytest.raises(WireError):
        device.offer(TrustFiles(role=role, files=files))

    assert device.refresh() == device.view()


def test_a_timestamp_larger_than_any_honest_one_is_not_parsed(world: World) -> None:
    device = ready(world)
    padded = text(world.renew()["timestamp"]) + " " * 20_000

    device.offer(TrustFiles(role="timestamp", files={"timestamp.json": padded}))

    with pytest.raises(MetadataUntrusted):
        device.refresh()


def test_a_flood_of_roles_is_bounded_and_the_honest_ones_still_pass(world: World) -> None:
    device = world.device()
    flood = "x" * 100_000
    for index in range(100):
        device.offer(TrustFiles(role=f"release-{index}", files={f"1.release-{index}.json": flood}))

    assert sum(len(text) for files in device._candidates.values() for text in files.values()) <= CANDIDATE_BYTES_MAX
    deliver(device, world.messages())
    assert DIGITS_1 in device.refresh().targets


@pytest.mark.parametrize("nonsense", ["", "null", "[" * 100_000, '{"signed":{}}', '{"signatures":[],"signed":[]}'])
def test_nonsense_is_refused_as_untrusted(world: World, nonsense: str) -> None:
    device = ready(world)
    device.offer(TrustFiles(role="timestamp", files={"timestamp.json": nonsense}))

    with pytest.raises(MetadataUntrusted):
        device.refresh()

    assert device.view() is not None


# -- disk ------------------------------------------------------------------------------------------------------------


def test_the_view_survives_a_restart_before_anything_arrives(world: World) -> None:
    before = ready(world).view()

    device = world.device()

    assert device.view() == before
    assert device.refresh() == before
    assert device.open_assignment(world.assignment()).counter == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 4096, None])
def test_a_damaged_state_falls_back_to_the_one_before(world: World, damage: bytes | None) -> None:
    ready(world)
    old = world.messages()
    world.publish(DIGITS, 2)
    ready(world)
    world.publish(DIGITS, 3)
    ready(world)
    state = world.folder / "device/trust.json"
    raw = state.read_bytes()
    flipped = raw.replace(b"3.0.0", b"3.0.1", 1)  # Still JSON, but not what was verified.
    assert flipped != raw
    state.write_bytes(flipped if damage is None else damage)

    device = world.device()
    view = device.view()

    assert view is not None
    assert set(view.targets) == {DIGITS_1, DIGITS_2}
    deliver(device, old)
    with pytest.raises(MetadataReplayed):
        device.refresh()
    deliver(device, world.messages())
    assert target_path(DIGITS, "3.0.0") in device.refresh().targets


def test_a_device_that_lost_its_disk_starts_from_its_bootstrap_root(world: World) -> None:
    world.rotate()
    ready(world)
    for name in ("trust.json", "trust.json.previous"):
        (world.folder / "device" / name).unlink(missing_ok=True)

    device = world.device()

    assert device.view() is None
    deliver(device, world.messages())
    assert DIGITS_1 in device.refresh().targets


def test_what_cannot_be_kept_is_not_used(world: World) -> None:
    device = ready(world)
    before = device.view()
    blocker = world.folder / "device/trust.json.tmp"
    blocker.mkdir()  # The state cannot be written while this is in the way.
    deliver(device, world.publish(DIGITS, 2))

    with pytest.raises(DiskFull):
        device.refresh()
    assert device.view() == before

    blocker.rmdir()
    assert DIGITS_2 in device.refresh().targets


def test_nothing_but_the_state_is_left_on_the_disk(world: World) -> None:
    device = ready(world)
    deliver(device, world.publish(DIGITS, 2), "timestamp")
    with pytest.raises(TrustError):
        device.refresh()

    assert {path.name for path in (world.folder / "device").iterdir()} == {"trust.json", "trust.json.previous"}


# -- whoever verifies ------------------------------------------------------------------------------------------------


def test_when_nobody_can_verify_nothing_is_believed_and_it_is_tried_again_later(world: World) -> None:
    checker = Counted()
    device = world.device_with(checker)
    deliver(device, world.messages())
    before = device.refresh()
    deliver(device, world.publish(DIGITS, 2))

    checker.here = False
    for _ in range(3):
        with pytest.raises(CheckFailed):
            device.refresh()
    assert (device.view(), checker.asked) == (before, 2)

    checker.here = True
    world.now += timedelta(seconds=RETRY_S)
    assert DIGITS_2 in device.refresh().targets


def test_an_envelope_that_breaks_the_verifier_condemns_itself_alone(world: World) -> None:
    device = ready(world)
    view = device.view()
    assert view is not None
    no_bytes: bytes = 7  # type: ignore[assignment]  # Stands for a bug: no caller does so.

    broken = Checks().open(Envelope(raw=no_bytes, keys=view.keys))

    assert broken.failure is not None
    assert isinstance(broken.failure.error(), WireError)
    assert device.open_assignment(world.assignment()).counter == 1


def test_the_same_assignment_again_costs_no_work_until_the_keys_change(world: World) -> None:
    checker = Counted()
    device = world.device_with(checker)
    deliver(device, world.messages())
    device.refresh()
    signed = world.assignment()
    device.open_assignment(signed)
    checker.asked = 0

    assert device.open_assignment(signed).counter == 1
    assert checker.asked == 0

    deliver(device, world.rotate())
    device.refresh()
    with pytest.raises(AssignmentForged):
        device.open_assignment(signed)


def test_what_has_expired_is_judged_again_only_by_news_or_by_an_earlier_clock(world: World) -> None:
    checker = Counted()
    device = world.device_with(checker)
    deliver(device, world.messages())
    device.refresh()
    world.now = NOW + 2 * DAY
    for _ in range(3):
        with pytest.raises(MetadataExpired):
            device.refresh()
        world.now += HOUR
    assert checker.asked == 2

    world.now = NOW + HOUR

    assert DIGITS_1 in device.refresh().targets
