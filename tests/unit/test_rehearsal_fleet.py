"""The fleet's document: what is understood, what a selector takes of it, and what is refused with which words."""

import msgspec
import pytest

from muster_simulator.rehearsal import fleet_shape
from muster_simulator.rehearsal.scenarios import RehearsalRefused, standard

LISTED = [
    {"id": "a", "device_class": "pi5", "online": True, "labels": {"site": "berlin"}, "agent_version": "1.2.0"},
    {"id": "b", "device_class": "pi5", "online": False, "labels": {"site": "rome"}, "standing": "current"},
    {"id": "c", "device_class": "nuc", "online": True, "labels": {"site": "berlin"}, "timezone": "Europe/Berlin"},
]


def test_a_short_shape_says_how_many_of_which_class() -> None:
    text = b"classes: {pi5: 8, nuc: {devices: 2, labels: {site: rome}, fetch_s: 30}}\noffline: 10%\nfetch_s: 5m\n"

    fleet = fleet_shape.parse(text, "fleet.yaml").select("")

    assert fleet.classes == {"nuc": 2, "pi5": 8}
    assert {kind.fetch_s for kind in fleet.kinds["nuc"]} == {30.0}
    assert {(kind.fetch_s, kind.offline) for kind in fleet.kinds["pi5"]} == {(300.0, 0.1)}


def test_what_device_list_prints_is_a_fleet() -> None:
    fleet = fleet_shape.parse(msgspec.json.encode(LISTED), "fleet.json").select("")

    assert fleet.classes == {"nuc": 1, "pi5": 2}
    assert sorted(kind.offline for kind in fleet.kinds["pi5"]) == [0.0, 1.0]
    assert fleet.kinds["nuc"][0].zone == "Europe/Berlin"


@pytest.mark.parametrize(
    ("selector", "classes"),
    [("site=berlin", {"nuc": 1, "pi5": 1}), ("hw/class=pi5", {"pi5": 2}), ("agent/version", {"pi5": 1})],
)
def test_a_selector_takes_its_part_of_the_fleet(selector: str, classes: dict[str, int]) -> None:
    fleet = fleet_shape.parse(msgspec.json.encode(LISTED), "fleet.json").select(selector)

    assert fleet.classes == classes
    assert fleet.notes == ()


def test_a_condition_on_what_the_document_does_not_tell_is_taken_to_hold_and_said_so() -> None:
    fleet = fleet_shape.parse(msgspec.json.encode(LISTED), "fleet.json").select("hw/arch=aarch64,site=berlin")

    assert fleet.devices == 2
    assert "hw/arch" in fleet.notes[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: {}", "1 to"),
        ("classes: {pi5: 0}", "0 devices"),
        ("classes: {pi5: 9999999}", "9999999 devices"),
        ("classes: {pi5: 5}\noffline: 110%", "offline"),
        ("classes: {pi5: 5}\noffline: 100%", "none comes back"),
        ("classes: {pi5: 5}\nofline: 10%", "ofline"),
        ("classes: {pi5: 5}\ntimezones: {Europe/Berlin: 50%}", "sum to 50%"),
        ("classes: {pi5: 5}\ntimezones: {Europe/Berlni: 100%}", "Berlni"),
        ("classes: {pi5: 5}\nfetch_s: 0", "above 0"),
        ("classes: {pi5: 5}\nweather: -1", "0 or more"),
        ("classes: {pi5: &a 5, nuc: *a}", "anchor"),
        ("[1, 2]", "muster device list --json"),
        ("[]", "0 devices"),
        ("waves: [5]", "classes"),
    ],
)
def test_what_is_no_fleet_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(RehearsalRefused, match=said):
        fleet_shape.parse(text.encode(), "fleet.yaml")


def test_harm_in_one_class_is_tried_on_the_class_that_is_nearest_a_tenth() -> None:
    found = {each.name: each for each in standard(0.01, {"pi5": 760, "nuc": 150, "jetson": 90})}

    assert found["one-class"].harm.only_class == "jetson"
    assert [name for name, each in found.items() if each.is_harmless] == ["good"]
    assert "one-class" not in {each.name for each in standard(0.01, {"pi5": 800})}
