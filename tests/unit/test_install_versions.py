"""Which environment runs, whatever was interrupted; and which wheel sets are taken."""

from pathlib import Path

import msgspec
import pytest

from muster_agent.core.trust import Target
from muster_agent.install import versions, wheel_set
from muster_agent.install.health import Health
from muster_agent.install.places import InstallError, Places, load, point, save
from muster_agent.install.service import Nobody
from muster_agent.install.switching import UpgradeFailed, prove, shortfall
from muster_agent.install.versions import STARTS_MAX, Pending
from muster_agent.install.wheel_set import UpgradeRefused, WheelSet
from muster_shared.bundle import digest


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An installation that runs 1.0.0, beside a whole 2.0.0."""
    places = Places(
        is_user=True,
        config=tmp_path / "etc" / "agent.toml",
        data_dir=tmp_path / "data",
        program_dir=tmp_path / "program",
        unit=tmp_path / "unit",
    )
    for version in ("1.0.0", "2.0.0"):
        versions.environment_of(places, version).mkdir(parents=True)
        versions.mark_whole(versions.environment_of(places, version))
    point(places.current, versions.environment_of(places, "1.0.0"))
    return places


def switch_to_two(places: Places) -> Pending:
    before, after = versions.environment_of(places, "1.0.0"), versions.environment_of(places, "2.0.0")
    return Pending(version="2.0.0", before=before, after=after, serving=("digits 1.0.0",))


def serves_nothing(places: Places) -> Health:
    return Health(is_up=True, version=runs(places))


def runs(places: Places) -> str:
    return places.current.resolve().parent.name


GOOD = Health(is_up=True, version="2.0.0", serving=("digits 1.0.0", "fruit 3.0.0"))


def test_a_version_that_does_as_well_stays_and_the_one_before_is_kept(places: Places) -> None:
    switch = switch_to_two(places)
    (places.program_dir / "versions" / "0.9.0").mkdir()

    versions.begin(places, switch)
    prove(places, Nobody(places), switch, lambda: GOOD, 0.0)

    assert runs(places) == "2.0.0"
    assert versions.pending(places) is None
    assert sorted(path.name for path in (places.program_dir / "versions").iterdir()) == ["1.0.0", "2.0.0"]


def test_one_that_serves_less_is_taken_back(places: Places) -> None:
    switch = switch_to_two(places)

    versions.begin(places, switch)
    with pytest.raises(UpgradeFailed, match=r"does not serve digits 1\.0\.0"):
        prove(places, Nobody(places), switch, lambda: serves_nothing(places), 0.0)

    assert runs(places) == "1.0.0"
    assert versions.pending(places) is None
    assert not versions.environment_of(places, "2.0.0").exists()


def test_a_version_in_vain_leaves_the_way_back_as_it_was(places: Places) -> None:
    switch = switch_to_two(places)
    earlier = places.program_dir.parent / "first"
    earlier.mkdir()
    point(versions.previous(places), earlier)

    versions.begin(places, msgspec.structs.replace(switch, earlier=earlier))
    with pytest.raises(UpgradeFailed):
        prove(places, Nobody(places), versions.pending(places) or switch, lambda: serves_nothing(places), 0.0)

    assert versions.previous(places).resolve() == earlier


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (GOOD, ""),
        (Health(problem="refused"), "did not come up"),
        (Health(is_up=True, version="1.0.0", serving=GOOD.serving), "1.0.0 does"),
        (Health(is_up=True, version="2.0.0", serving=("digits 0.9.0",)), "does not serve digits 1.0.0"),
    ],
)
def test_what_a_version_lacks_is_said(places: Places, health: Health, words: str) -> None:
    lacks = shortfall(health, switch_to_two(places))

    assert words in lacks
    assert bool(lacks) is bool(words)


def test_a_version_that_was_started_often_and_never_proven_is_taken_back_at_a_start(places: Places) -> None:
    versions.begin(places, switch_to_two(places))

    for _ in range(STARTS_MAX):
        versions.count_start(places)
    still = runs(places)
    said = versions.count_start(places)
    after = versions.count_start(places)

    assert still == "2.0.0"
    assert "takes over" in said
    assert (runs(places), after) == ("1.0.0", "")


def test_a_proven_version_may_start_as_often_as_it_likes(places: Places) -> None:
    counted = {versions.count_start(places) for _ in range(STARTS_MAX * 3)}

    assert counted == {""}
    assert runs(places) == "1.0.0"


def test_two_do_not_work_on_the_versions_at_once(places: Places) -> None:
    with versions.alone(places, 0.0), pytest.raises(InstallError, match="under way"), versions.alone(places, 0.0):
        pass


def test_the_record_is_read_as_it_was_written_and_a_relative_path_is_refused(places: Places) -> None:
    save(places)
    as_written = load(places.config)
    places.record.write_bytes(places.record.read_bytes().replace(bytes(places.data_dir), b"data"))

    assert as_written == places
    with pytest.raises(InstallError, match="absolute"):
        load(places.config)


# -- wheel sets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def offered(tmp_path: Path) -> Path:
    folder = tmp_path / "offered"
    (folder / "wheels").mkdir(parents=True)
    (folder / "requirements.txt").write_text("muster_agent==2.0.0 --hash=sha256:00\n")
    (folder / "wheels" / "muster_agent-2.0.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / "bundle.json").write_bytes(
        wheel_set.describe(folder, "2.0.0", 7, python=((3, 11), (3, 14)), arch="x86_64")
    )
    return folder


def parsed(folder: Path) -> WheelSet:
    return wheel_set.parse(wheel_set.read_manifest(folder))


def test_only_the_bytes_that_were_signed_are_vouched_for(offered: Path) -> None:
    offer = parsed(offered)
    signed = Target(sha256=digest(offer.raw), length=len(offer.raw))
    path = "models/muster-agent/2.0.0/bundle.json"

    wheel_set.check_signed(offer, {path: signed})

    with pytest.raises(UpgradeRefused, match="not among"):
        wheel_set.check_signed(offer, {"models/muster-agent/1.0.0/bundle.json": signed})
    with pytest.raises(UpgradeRefused, match="another digest"):
        wheel_set.check_signed(msgspec.structs.replace(offer, raw=offer.raw + b"\n"), {path: signed})


def test_wheels_for_another_python_or_processor_are_refused(offered: Path) -> None:
    offer = parsed(offered)

    assert wheel_set.fitting(offer, (3, 13), "x86_64").name == "linux-x86-64"
    with pytest.raises(UpgradeRefused, match=r"3\.14"):
        wheel_set.fitting(offer, (3, 14), "x86_64")
    with pytest.raises(UpgradeRefused, match="aarch64"):
        wheel_set.fitting(offer, (3, 11), "aarch64")


@pytest.mark.parametrize("content", [b"whee1", b"wheel and more", b"whe", None])
def test_a_wheel_that_is_not_the_signed_one_is_not_copied(offered: Path, tmp_path: Path, content: bytes | None) -> None:
    offer, into = parsed(offered), tmp_path / "into"
    into.mkdir()
    wheel = offered / "wheels" / "muster_agent-2.0.0-py3-none-any.whl"
    wheel.unlink()
    if content is not None:
        wheel.write_bytes(content)

    with pytest.raises(UpgradeRefused, match="wheel"):
        wheel_set.copy_verified(offer, offer.manifest.variants[0], offered, into)


def test_the_bundle_of_a_model_is_no_agent(offered: Path) -> None:
    document = msgspec.json.decode((offered / "bundle.json").read_bytes())

    with pytest.raises(UpgradeRefused, match="of the model"):
        wheel_set.parse(msgspec.json.encode({**document, "model": "digits"}))
    with pytest.raises(UpgradeRefused, match="agent"):
        wheel_set.parse(msgspec.json.encode({name: value for name, value in document.items() if name != "agent"}))
