"""What the pages of models and keys stand on, over HTTP: a release published from files, its pages, and the keys.

The steps are those of `static/upload.js`: check, send what is missing, publish. The browser itself is tested elsewhere.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from harness.desk import FLEET, MODEL, Desk, Puppets, client, is_problem, local_token, open_desk, until, wait_for
from muster_controller.config import ServerConfig
from muster_controller.registry.operator import add_model, load_offline, revoke_release
from muster_controller.server import Controller
from muster_shared.ids import ModelName


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def check(http: httpx.Client, bundle: Path, metadata: bytes, model: str = MODEL) -> httpx.Response:
    body = {"metadata": metadata.decode(), "manifest": (bundle / "bundle.json").read_text()}
    return http.post(f"/models/{model}/releases/check", json=body)


def send(http: httpx.Client, bundle: Path, sha256: str, path: str) -> httpx.Response:
    content = (bundle / path).read_bytes()
    return http.put(f"/blobs/{sha256}", content=content, headers={"Content-Type": "application/octet-stream"})


# -- publishing ----------------------------------------------------------------------------------------------------


def test_a_release_is_published_from_files_and_goes_on_where_it_stopped(desk: Desk) -> None:
    bundle, metadata = desk.sign("1.0.0", 1)
    http = desk.hire("ann", "publisher")

    first = check(http, bundle, metadata).json()
    assert send(http, bundle, first["missing"][0]["sha256"], first["missing"][0]["path"]).status_code == 201
    second = check(http, bundle, metadata).json()
    assert send(http, bundle, second["missing"][0]["sha256"], second["missing"][0]["path"]).status_code == 201
    third = check(http, bundle, metadata).json()
    body = {"metadata": metadata.decode(), "manifest": (bundle / "bundle.json").read_text()}
    published = http.post(f"/models/{MODEL}/releases", json=body)

    assert [each["path"] for each in first["missing"]] == ["model.onnx", "golden.npz"]
    assert first["bytes"] == sum(each["length"] for each in first["missing"])
    assert [each["path"] for each in second["missing"]] == ["golden.npz"]
    assert (third["missing"], third["added"], third["version"], third["is_new"]) == ([], ["1.0.0"], "1.0.0", True)
    assert published.status_code == 201
    assert check(http, bundle, metadata).json()["is_new"] is False
    assert "1.0.0" in desk.page(f"/models/{MODEL}/versions/1.0.0").text


def test_what_is_wrong_is_said_before_anything_large_is_sent(desk: Desk) -> None:
    bundle, metadata = desk.sign("1.0.0", 1)
    forged = json.loads(metadata)
    forged["signatures"] = forged["signatures"][:1]

    too_few = check(desk.http, bundle, json.dumps(forged).encode())
    unknown = check(desk.http, bundle, metadata, "nobody")
    viewer = check(desk.hire("vic", "viewer"), bundle, metadata)

    assert is_problem(too_few, 422, "threshold-not-met")
    assert "1 of the 2 keys" in too_few.json()["detail"]
    assert is_problem(unknown, 404, "not-found")
    assert is_problem(viewer, 403, "forbidden")
    assert desk.get("/models")["models"][0]["versions"] == []


def test_a_file_that_is_not_what_the_manifest_says_is_refused_and_the_rest_stays(desk: Desk) -> None:
    bundle, metadata = desk.sign("1.0.0", 1)
    model, golden = check(desk.http, bundle, metadata).json()["missing"]
    send(desk.http, bundle, golden["sha256"], golden["path"])

    wrong = send(desk.http, bundle, model["sha256"], golden["path"])

    assert is_problem(wrong, 422, "blob-mismatch")
    assert [each["path"] for each in check(desk.http, bundle, metadata).json()["missing"]] == ["model.onnx"]


def test_a_revocation_is_checked_first_and_the_release_stays_readable_as_revoked(desk: Desk) -> None:
    desk.publish("1.0.0", 1)
    desk.publish("2.0.0", 2)
    with closing(Puppets(desk.controller.broker_url, ("dev-00", "dev-01"))):
        wait_for(desk, 2)
        rollout = desk.roll_out("2.0.0").json()["id"]
        until(lambda: desk.state(rollout) == "finished")
        base = desk.http.get(f"/models/{MODEL}/metadata").content
        revoked = revoke_release(desk.folder / "operator", MODEL, "2.0.0", base, datetime.now(UTC))
        body = {"metadata": revoked.metadata.decode(), "manifest": None}

        found = desk.http.post(f"/models/{MODEL}/releases/check", json=body).json()
        desk.http.post(f"/models/{MODEL}/releases", json=body).raise_for_status()

    assert (found["removed"], found["version"], found["missing"]) == ({"2.0.0": 2}, None, [])
    assert desk.get(f"/models/{MODEL}")["versions"] == ["1.0.0"]
    assert desk.get(f"/models/{MODEL}/versions/2.0.0")["is_revoked"] is True
    trust = desk.get(f"/models/{MODEL}/versions/2.0.0/trust")
    assert [(step["added"], step["removed"]) for step in trust["steps"]] == [([], ["2.0.0"]), (["2.0.0"], [])]
    assert "revoked" in desk.page(f"/models/{MODEL}/versions/2.0.0").text
    assert desk.get(f"/models/{MODEL}/versions/1.0.0")["is_revoked"] is False


def test_trust_metadata_of_a_new_model_is_brought_as_the_page_does(desk: Desk) -> None:
    operator = desk.folder / "operator"
    add_model(operator, ModelName("faces"), datetime.now(UTC))
    offline = load_offline(operator)
    body = {"root": offline.root.decode(), "targets": offline.targets.decode(), "keys": offline.keys.decode()}

    answer = desk.hire("ann", "publisher").post("/trust/offline", json={**body, "between": [], "releases": {}})

    assert answer.json() == {"changed": True}
    assert "release-faces" in [each["role"] for each in desk.get("/keys")["roles"]]
    assert "faces" in desk.page("/keys").text


# -- what a release is and where it runs ---------------------------------------------------------------------------


def test_a_release_says_who_signed_it_and_how_many_it_takes(desk: Desk) -> None:
    desk.publish("1.0.0", 1)

    found = desk.get(f"/models/{MODEL}/versions/1.0.0/trust")

    role = found["role"]
    assert (role["role"], role["delegated_by"], role["threshold"], role["signed"]) == (
        "release-digits",
        "targets",
        2,
        3,
    )
    assert len(found["steps"]) == 1
    assert found["is_revoked"] is False
    assert is_problem(desk.http.get(f"/models/{MODEL}/versions/9.0.0/trust"), 404, "not-found")


def test_where_a_release_serves_is_counted_and_two_are_compared(desk: Desk) -> None:
    desk.publish("1.0.0", 1)
    desk.publish("2.0.0", 2)
    names = tuple(f"dev-{index:02}" for index in range(4))
    with closing(Puppets(desk.controller.broker_url, names, classes=("pi5", "nuc"))):
        wait_for(desk, 4)
        for version in ("1.0.0", "2.0.0"):
            _roll_out(desk, version)
        use = until(lambda: _where(desk, "2.0.0", 4))
        before = desk.get(f"/models/{MODEL}/versions/1.0.0/use")
        compared = desk.get(f"/models/{MODEL}/compare", before="1.0.0", after="2.0.0")
        mine = desk.hire("olaf", "operator", "site=oslo").get(f"/models/{MODEL}/versions/2.0.0/use").json()
        pages = {
            path: desk.page(path)
            for path in (
                "/models",
                f"/models/{MODEL}",
                f"/models/{MODEL}/versions/2.0.0",
                f"/models/{MODEL}/compare?before=1.0.0&after=2.0.0",
                f"/models/{MODEL}/compare",
                "/publish",
                "/keys",
            )
        }

    assert use["classes"] == {"nuc": 2, "pi5": 2}
    assert use["labels"]["site"] == {"bergen": 2, "oslo": 2}
    assert [(pick["device_class"], pick["engine"], pick["latency_ms_p95"]) for pick in use["picks"]] == [
        ("nuc", "onnxruntime cpu", None),
        ("pi5", "onnxruntime cpu", None),
    ]
    assert (before["devices"], before["standby"]) == (0, 4)
    assert mine["devices"] == 2
    assert [each["is_same"] for each in compared["files"]] == [False, True]
    assert {each["device_class"]: each["devices_after"] for each in compared["latency"]} == {"nuc": 2, "pi5": 2}
    assert all(page.status_code == 200 for page in pages.values()), {
        path: page.status_code for path, page in pages.items()
    }
    assert f"/models/{MODEL}/versions/2.0.0" in pages["/models"].text
    assert "hw%2Fclass%3Dpi5" in pages[f"/models/{MODEL}/versions/2.0.0"].text
    assert desk.page("/models/nobody").status_code == 404
    assert desk.page(f"/models/{MODEL}/versions/9.0.0").status_code == 404


def _roll_out(desk: Desk, version: str) -> None:
    rollout = desk.roll_out(version).json()["id"]
    until(lambda: desk.state(rollout) == "finished")


def _where(desk: Desk, version: str, devices: int) -> dict[str, object] | None:
    found = desk.get(f"/models/{MODEL}/versions/{version}/use")
    return found if found["devices"] == devices else None


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_keys_page_tells_of_roles_certificates_and_devices_to_whoever_may_look(desk: Desk) -> None:
    viewer = desk.hire("vic", "viewer")

    found = viewer.get("/keys").raise_for_status().json()

    assert [each["role"] for each in found["roles"]] == ["root", "targets", "release-digits", "snapshot", "timestamp"]
    assert len(found["assignment_keys"]) == 1
    assert {"root", "intermediate", "server", "controller"} <= {each["role"] for each in found["certificates"]}
    assert (found["devices"]["valid"], len(found["devices"]["days"])) == (0, 14)
    page = viewer.get(desk.controller.url + "/keys")
    assert page.status_code == 200
    assert "trust-form" not in page.text
    assert 'id="trust-form"' in desk.page("/keys").text


def test_a_controller_without_metadata_says_the_first_steps(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path / "data", fleet=FLEET, port=0, broker_port=0, device_port=0, open_lab=True)
    with Controller(config) as controller, client(controller.url, local_token(config.data)) as http:
        keys, models, upload = (http.get(controller.url + path) for path in ("/keys", "/models", "/publish"))

    assert "first-online-keys" in keys.text
    assert "no trust metadata" in models.text
    assert "not-yet" in upload.text


def test_the_upload_page_is_for_publishers_alone(desk: Desk) -> None:
    viewer = desk.hire("vic", "viewer")

    assert viewer.get(desk.controller.url + "/publish").status_code == 403
    assert 'data-upload="release"' in desk.page("/publish").text
    assert "/publish" not in viewer.get(desk.controller.url + "/models").text
