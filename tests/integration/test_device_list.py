"""The list of devices as page, API and file; its filters, saved views and labels, on a real controller."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from harness.desk import Desk, Puppets, is_problem, open_desk, wait_for

pytestmark = pytest.mark.broker
NAMES = tuple(f"device-{number}" for number in range(6))
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("list")) as found:
        puppets = Puppets(found.controller.broker_url, NAMES, classes=("nuc", "pi5", "pi5"))
        with closing(puppets):
            wait_for(found, len(NAMES))
            yield found


def ids(page: dict[str, object]) -> list[str]:
    devices = page["devices"]
    assert isinstance(devices, list)
    return [each["id"] for each in devices]


def test_a_selector_chooses_as_in_policies(desk: Desk) -> None:
    oslo = desk.get("/devices", selector="site=oslo,hw/class notin (nuc)")

    assert ids(oslo) == ["device-1", "device-5"]
    assert oslo["found"] == 2


def test_the_filters_of_before_still_hold(desk: Desk) -> None:
    assert ids(desk.get("/devices", label="site=oslo", **{"class": "nuc"})) == ["device-3"]
    assert ids(desk.get("/devices", q="-4")) == ["device-4"]
    assert ids(desk.get("/devices", online="false")) == []
    assert len(ids(desk.get("/devices", state="unassigned"))) == 6


def test_pages_of_every_sort_have_everybody_once(desk: Desk) -> None:
    for sort in ("id", "-id", "class", "-class", "standing", "seen", "-seen"):
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = desk.get("/devices", sort=sort, limit=4, **cursor)
            found += ids(page)
            assert page["found"] == 6
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert sorted(found) == sorted(NAMES), sort


def test_what_is_no_filter_is_refused(desk: Desk) -> None:
    assert is_problem(desk.http.get("/devices", params={"selector": "site in"}), 422, "selector-invalid")
    assert is_problem(desk.http.get("/devices", params={"sort": "colour"}), 422, "name-invalid")
    assert is_problem(desk.http.get("/devices", params={"sort": "seen", "cursor": "device-1"}), 422, "name-invalid")


def test_the_list_is_a_file_in_csv_and_json(desk: Desk) -> None:
    answer = desk.http.get("/devices.csv", params={"selector": "site=oslo"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    told = desk.http.get("/devices.json").text
    nobody = desk.http.get("/devices.json", params={"q": "nobody"}).json()

    assert answer.headers["content-disposition"] == 'attachment; filename="devices.csv"'
    assert [row["id"] for row in rows] == ["device-1", "device-3", "device-5"]
    assert rows[0]["labels"] == "site=oslo"
    assert [each["id"] for each in json.loads(told)] == list(NAMES)
    assert nobody == []


def test_labels_are_listed_with_their_values_and_how_these_stand(desk: Desk) -> None:
    found = desk.get("/labels", prefix="site")["labels"]
    values = desk.get("/labels", prefix="site=o")["labels"]

    assert [(each["key"], each["devices"], each["values"]) for each in found] == [("site", 6, 2)]
    assert values[0]["top"] == [{"value": "oslo", "devices": 3, "standings": {"unassigned": 3}}]


def test_a_view_is_kept_for_its_operator_alone(desk: Desk) -> None:
    someone = desk.hire("vera", "viewer")

    saved = desk.http.put("/views/devices/in oslo", json={"query": "selector=site%3Doslo"})

    assert saved.status_code == 200
    assert [each["name"] for each in desk.get("/views", page="devices")["views"]] == ["in oslo"]
    assert someone.get("/views").json()["views"] == []
    assert is_problem(someone.delete("/views/devices/in oslo", headers=JSON), 404, "not-found")
    assert "in oslo" in desk.page("/devices").text
    assert desk.http.delete("/views/devices/in oslo", headers=JSON).status_code == 204
    assert desk.get("/views")["views"] == []


def test_the_page_shows_what_its_address_asks(desk: Desk) -> None:
    page = desk.page("/devices?selector=site%3Doslo&state=&online=&sort=-id")

    assert page.status_code == 200
    assert page.text.index("row-device-5") < page.text.index("row-device-1")
    assert "row-device-2" not in page.text
    for each in ("devices-filter", "device-table", "save-view", "label-edit"):
        assert f'id="{each}"' in page.text


def test_the_page_says_what_is_wrong_with_a_filter(desk: Desk) -> None:
    page = desk.page("/devices?selector=site%20in")

    assert page.status_code == 422
    assert "position" in page.text


def test_the_selector_is_completed_from_what_there_is(desk: Desk) -> None:
    keys = desk.page("/complete/selector?selector=hw/class%3Dnuc,si").text
    values = desk.page("/complete/selector?selector=site%3D").text

    assert 'value="hw/class=nuc,site"' in keys
    assert 'value="site=oslo"' in values
    assert 'value="site=bergen"' in values


def test_the_map_of_labels_crosses_two(desk: Desk) -> None:
    page = desk.page("/labels?by=site&and=hw/class").text

    assert "Devices by site and hw/class" in page
    assert "label=site%3Doslo&amp;label=hw%2Fclass%3Dpi5" in page


def test_whoever_has_a_part_of_the_fleet_sees_lists_counts_and_files_of_it_alone(desk: Desk) -> None:
    oslo: httpx.Client = desk.hire("olga", "operator", "site=oslo")

    page = oslo.get("/devices").json()
    status = oslo.get("/status").json()
    labels = oslo.get("/labels", params={"prefix": "site"}).json()["labels"]

    assert ids(page) == ["device-1", "device-3", "device-5"]
    assert page["found"] == status["devices"] == 3
    assert [each["value"] for each in labels[0]["top"]] == ["oslo"]
    assert "device-2" not in oslo.get("/devices.csv").text
    assert oslo.get("/devices/device-2").status_code == 404


def test_in_an_open_lab_labels_are_the_devices_own(desk: Desk) -> None:
    order = {"selector": "site=oslo", "set": {"line": "1"}}

    assert is_problem(desk.http.post("/devices/labels", json=order), 409, "conflict")
    assert desk.hire("vic", "operator").post("/devices/labels", json=order).status_code == 403


def test_an_edit_of_labels_says_whose_and_is_refused_where_the_list_moved_on(tmp_path: Path) -> None:
    with open_desk(tmp_path, open_lab=False) as desk:
        nobody = desk.http.post("/devices/labels", json={"selector": "site=oslo", "changes": ["line=1"]}).json()
        moved = desk.http.post("/devices/labels", json={"selector": "", "set": {"line": "1"}, "expect": 3})
        unsaid = desk.http.post("/devices/labels", json={"set": {"line": "1"}})
        misspelt = desk.http.post("/devices/labels", json={"where": {"sate": "failing"}, "set": {"line": "1"}})
        own = desk.http.post("/devices/labels", json={"selector": "", "set": {"hw/class": "nuc"}})

    assert nobody == {"devices": 0, "changed": 0, "unchanged": 0, "without_identity": 0, "dry_run": False}
    assert is_problem(moved, 409, "conflict")
    assert is_problem(unsaid, 422, "name-invalid")
    assert misspelt.status_code == 422
    assert is_problem(own, 422, "name-invalid")
