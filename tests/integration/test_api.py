"""The whole controller in one piece: database, registry, broker, API and page, with puppets for devices."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from harness.desk import (
    FLEET,
    MODEL,
    QUICK,
    Desk,
    Puppets,
    bring_offline,
    is_problem,
    make_bundle,
    open_desk,
    until,
    wait_for,
)
from muster_controller.config import ServerConfig
from muster_controller.errors import ServerUnavailable
from muster_controller.registry.operator import add_model
from muster_controller.server import Controller
from muster_shared.bundle import describe_file
from muster_shared.ids import ModelName


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def puppets(desk: Desk) -> Iterator[Puppets]:
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{index:02}" for index in range(6)))) as puppets:
        wait_for(desk, 6)
        yield puppets


# -- models --------------------------------------------------------------------------------------------------------


def test_a_release_is_published_listed_and_served(desk: Desk) -> None:
    answer = desk.publish("1.0.0", 1)

    assert answer.status_code == 201
    assert answer.json() == {"changed": True, "model": MODEL, "versions": ["1.0.0"]}
    assert desk.get("/models")["models"][0]["versions"] == ["1.0.0"]
    assert desk.get(f"/models/{MODEL}")["baseline"] is None
    detail = desk.get(f"/models/{MODEL}/versions/1.0.0")
    assert [file["path"] for file in detail["files"]] == ["model.onnx", "golden.npz"]
    blob = desk.http.get(f"/blobs/{detail['files'][0]['sha256']}", headers={"Range": "bytes=0-6"})
    assert (blob.status_code, blob.content) == (206, b"weights")
    assert desk.publish_again().json()["changed"] is False
    assert f"1.release-{MODEL}.json" in desk.get("/trust")["files"]
    assert desk.http.get(f"/trust/1.release-{MODEL}.json").content == (desk.folder / "signed").read_bytes()


def test_what_is_not_signed_or_not_there_is_not_published(desk: Desk) -> None:
    bundle, metadata = desk.sign("1.0.0", 1)
    manifest = (bundle / "bundle.json").read_text()
    body = {"metadata": metadata.decode(), "manifest": manifest}

    assert is_problem(desk.http.post(f"/models/{MODEL}/releases", json=body), 409, "blob-missing")
    for file in ("model.onnx", "golden.npz"):
        assert desk.put((bundle / file).read_bytes()).status_code == 201
    assert desk.put((bundle / "model.onnx").read_bytes()).status_code == 200
    forged = json.loads(metadata)
    forged["signatures"] = forged["signatures"][:1]
    one = {**body, "metadata": json.dumps(forged)}
    assert is_problem(desk.http.post(f"/models/{MODEL}/releases", json=one), 422, "threshold-not-met")
    broken = {**body, "manifest": manifest.replace("digits", "digitz")}
    assert is_problem(desk.http.post(f"/models/{MODEL}/releases", json=broken), 422, "metadata-refused")
    assert is_problem(desk.http.post("/models/nobody/releases", json=body), 404, "not-found")
    assert is_problem(desk.http.get(f"/models/{MODEL}/versions/1.0.0"), 404, "not-found")
    assert desk.http.post(f"/models/{MODEL}/releases", json=body).status_code == 201


def test_a_blob_is_kept_only_if_it_is_what_its_name_says(desk: Desk) -> None:
    name = "0" * 64

    assert is_problem(desk.put(b"something else", name), 422, "blob-mismatch")
    assert desk.http.head(f"/blobs/{name}").status_code == 404
    assert is_problem(desk.put(b"x", "no-digest"), 422, "request-invalid")


def test_a_large_blob_is_streamed(desk: Desk) -> None:
    raw = random.Random(1).randbytes(20 * 1024 * 1024)

    assert desk.put(raw).json()["created"] is True
    assert desk.http.get(f"/blobs/{describe_file('x', raw).sha256}").content == raw


def test_the_operator_may_add_a_model_while_it_runs(desk: Desk) -> None:
    add_model(desk.folder / "operator", ModelName("faces"), datetime.now(UTC))

    bring_offline(desk)

    assert [model["name"] for model in desk.get("/models")["models"]] == [MODEL, "faces"]


# -- devices and rollouts ------------------------------------------------------------------------------------------


def test_devices_are_listed_filtered_and_paged(desk: Desk, puppets: Puppets) -> None:
    first = desk.get("/devices", limit=4)
    second = desk.get("/devices", limit=4, cursor=first["next"])

    ids = [device["id"] for device in first["devices"] + second["devices"]]
    assert ids == list(puppets.names)
    assert second["next"] is None
    assert len(desk.get("/devices", label="site=oslo")["devices"]) == 3
    assert desk.get("/devices", **{"class": "gpu"})["devices"] == []
    assert len(desk.get("/devices", state="unassigned", online=True, q="dev-0")["devices"]) == 6
    assert desk.get("/devices/dev-00")["labels"] == {"site": "bergen"}
    assert is_problem(desk.http.get("/devices/nobody"), 404, "not-found")
    assert is_problem(desk.http.get("/devices", params={"label": "site"}), 422, "name-invalid")
    assert is_problem(desk.http.get("/devices", params={"state": "odd"}), 422, "request-invalid")


def test_a_rollout_goes_from_the_first_wave_to_the_baseline_and_back(desk: Desk, puppets: Puppets) -> None:
    desk.publish("1.0.0", 1)
    desk.publish("2.0.0", 2)
    dry = desk.http.post("/rollouts", json={"model": MODEL, "version": "1.0.0", "policy": QUICK, "dry_run": True})
    assert (dry.status_code, dry.json()["devices"], dry.json()["waves"]) == (200, 6, [1, 2, 3])
    assert desk.get("/rollouts")["rollouts"] == []

    first = desk.roll_out("1.0.0")
    assert first.status_code == 201
    assert is_problem(desk.roll_out("2.0.0"), 409, "conflict")
    until(lambda: desk.state(first.json()["id"]) == "finished")
    second = desk.roll_out("2.0.0").json()["id"]
    until(lambda: desk.state(second) == "finished")

    found = desk.get(f"/rollouts/{second}")
    assert [stratum["controls"] for stratum in found["evidence"]["strata"]] == [5, 3, 0]
    assert [verdict["kind"] for verdict in found["verdicts"]] == ["promote"] * 3
    assert found["counts"]["good"] == 6
    assert len(desk.get(f"/rollouts/{second}/members")["members"]) == 6 + 8
    points = desk.get(f"/rollouts/{second}/evidence")["points"]
    assert points[0]["e"] == pytest.approx(1.0)
    assert points[-1]["reported"] == 6
    assert points[-1]["e"] == pytest.approx(found["e"])
    assert desk.get("/status")["baselines"] == {MODEL: "2.0.0"}
    assert desk.get("/status")["standings"] == {"current": 6}
    assert {event["kind"] for event in desk.get("/events", rollout=second)["events"]} == {"step", "outcome"}

    desk.http.post(f"/rollouts/{second}/rollback", json={"reason": "we like the old one"}).raise_for_status()
    until(lambda: desk.get("/status")["versions"] == [{"model": MODEL, "version": "1.0.0", "release": 1, "devices": 6}])
    notes = desk.get("/notes", subject=second)["notes"]
    assert "we like the old one" in [note["detail"] for note in notes]


def test_a_harmful_release_is_aborted_and_called_back(desk: Desk, puppets: Puppets) -> None:
    desk.publish("1.0.0", 1)
    desk.publish("2.0.0", 2)
    first = desk.roll_out("1.0.0").json()["id"]
    until(lambda: desk.state(first) == "finished")
    puppets.is_good = lambda _device, version: version != "2.0.0"

    second = desk.roll_out("2.0.0", {**QUICK, "waves": [3], "controls_per_device": 0}).json()["id"]

    until(lambda: desk.state(second) == "aborted")
    found = desk.get(f"/rollouts/{second}")
    assert found["verdicts"][-1]["kind"] == "abort"
    assert found["e"] >= found["abort_at"]
    assert found["counts"]["waiting"] == 3
    assert found["counts"]["returned"] == 3


def test_orders_are_obeyed_or_refused(desk: Desk, puppets: Puppets) -> None:
    desk.publish("1.0.0", 1)
    puppets.delay_s = lambda: 0.6
    rollout = desk.roll_out("1.0.0").json()["id"]

    paused = desk.http.post(f"/rollouts/{rollout}/pause", json={"reason": "lunch"})

    assert paused.json()["state"] == "paused"
    assert is_problem(desk.http.post(f"/rollouts/{rollout}/pause", json={}), 409, "order-refused")
    assert is_problem(desk.http.post(f"/rollouts/{rollout}/dance", json={}), 422, "request-invalid")
    assert is_problem(desk.http.post("/rollouts/nothing/pause", json={}), 404, "not-found")
    assert desk.http.post(f"/rollouts/{rollout}/resume", json={}).json()["state"] == "running"
    assert desk.http.post(f"/rollouts/{rollout}/abort", json={}).json()["state"] == "aborted"


def test_a_policy_that_cannot_be_satisfied_is_refused(desk: Desk, puppets: Puppets) -> None:
    desk.publish("1.0.0", 1)

    assert is_problem(desk.roll_out("1.0.0", {"alpha": 2}), 422, "policy-invalid")
    assert is_problem(desk.roll_out("1.0.0", {"speed": 2}), 422, "policy-invalid")
    assert is_problem(desk.roll_out("9.0.0"), 404, "not-found")
    assert is_problem(desk.roll_out("1.0.0", {"selector": {"site": "moon"}}), 409, "conflict")


# -- the stream, the page, the guard -------------------------------------------------------------------------------


def hear(desk: Desk, last: str, wanted: str) -> str:
    """Return the id of the next `wanted` event of the stream, from behind the id `last`."""
    headers = {"Last-Event-ID": last} if last else {}
    with desk.http.stream("GET", "/stream", headers=headers, timeout=15.0) as stream:
        event_id = ""
        for line in stream.iter_lines():
            if line.startswith("id:"):
                event_id = line[3:].strip()
            elif line == f"event: {wanted}":
                return event_id
    raise AssertionError("the stream ended")


def test_the_stream_tells_what_changed_and_goes_on_where_it_was(desk: Desk) -> None:
    begun = hear(desk, "", "heartbeat")

    with closing(Puppets(desk.controller.broker_url, ("dev-00",))):
        told = hear(desk, begun, "device")
    desk.publish("1.0.0", 1)

    assert hear(desk, told, "model")
    assert hear(desk, "other-5", "reset")


def test_every_page_is_shown_empty_and_full(desk: Desk, puppets: Puppets) -> None:
    pages = [
        "/",
        "/rollouts",
        "/models",
        "/?state=failing",
        "/static/muster.css",
        "/static/muster.js",
        "/static/icon.svg",
    ]
    for path in pages:
        assert desk.page(path).status_code == 200, path
    desk.publish("1.0.0", 1)
    rollout = desk.roll_out("1.0.0").json()["id"]
    for path in [*pages, f"/rollouts/{rollout}", "/devices/dev-00"]:
        answer = desk.page(path)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "style=" not in answer.text, f"{path}: the policy refuses inline styles"
    missing = desk.page("/rollouts/nothing")
    assert missing.status_code == 404
    assert "There is no rollout" in missing.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_web_page_from_elsewhere_cannot_order_anything(desk: Desk, headers: dict[str, str], status: int) -> None:
    sent = {"Content-Type": "application/json", **headers}

    answer = desk.http.post("/rollouts/any/pause", content=b"{}", headers=sent)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert "access-control-allow-origin" not in answer.headers


def test_the_api_describes_itself(desk: Desk) -> None:
    document = desk.get("/openapi.json")

    assert document["paths"]["/api/v1/rollouts/{rollout_id}/{order}"]["post"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("operationId"), (method, path)
            assert any(status.startswith("2") for status in operation["responses"]), (method, path)
            assert operation["responses"]["default"], (method, path)
    assert desk.get("/health")["initialised"] is True
    assert is_problem(desk.http.get("/nothing"), 404, "not-found")


# -- as a process --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def muster(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from muster_controller.cli.main import main; main()", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def serve(folder: Path, port: int, broker_port: int) -> subprocess.Popen[bytes]:
    code = "from muster_controller.cli.main import main; main()"
    words = ["serve", "--data", "muster-data", "--fleet", FLEET, "--port", str(port), "--broker-port", str(broker_port)]
    words += ["--device-port", "0", "--open-lab"]
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, stdout=log, stderr=log)
    until(lambda: answers(port), 30.0)
    return process


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def test_a_controller_that_is_killed_goes_on_and_the_command_line_drives_it(tmp_path: Path) -> None:
    port, broker_port = free_port(), free_port()
    assert muster("--url", f"http://127.0.0.1:{port}", "status", cwd=tmp_path).returncode == 6
    process = serve(tmp_path, port, broker_port)
    try:
        for words in (
            "trust online-keys --out online.json",
            f"init -m {MODEL} --online-keys online.json",
            "trust push",
        ):
            done = muster(*words.split(), cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        broker = f"mqtt://127.0.0.1:{broker_port}"
        puppets = Puppets(broker, tuple(f"dev-{index:02}" for index in range(6)), delay_s=lambda: 0.8)
        with closing(puppets):
            make_bundle(tmp_path / "bundle", "1.0.0", 1)
            signed = muster("model", "sign", "bundle", "--out", "signed.json", cwd=tmp_path)
            assert signed.returncode == 0, signed.stderr
            published = muster("model", "publish", "bundle", "--signed", "signed.json", cwd=tmp_path)
            assert published.returncode == 0, published.stderr
            (tmp_path / "policy.json").write_text(json.dumps(QUICK))
            status = lambda: json.loads(muster("status", "--json", cwd=tmp_path).stdout)  # noqa: E731
            until(lambda: status()["online"] == 6)
            create = ("rollout", "create", MODEL, "1.0.0", "--policy", "policy.json", "--json")
            assert json.loads(muster(*create, "--dry-run", cwd=tmp_path).stdout)["waves"] == [1, 2, 3]
            created = json.loads(muster(*create, cwd=tmp_path).stdout)
            assert muster(*create, cwd=tmp_path).returncode == 5

            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            until(lambda: not broker_answers(broker_port))
            process = serve(tmp_path, port, broker_port)

            watched = muster("rollout", "watch", created["id"], "--timeout", "30", "--json", cwd=tmp_path)
            assert watched.returncode == 0, watched.stdout + watched.stderr
            assert muster("rollout", "explain", created["id"], cwd=tmp_path).stdout.count(" promote: ") == 3
            assert muster("rollout", "show", "nothing", cwd=tmp_path).returncode == 4
            assert "dev-03" in muster("device", "list", cwd=tmp_path).stdout
            for show in (
                ("device", "show", "dev-01"),
                ("model", "list"),
                ("model", "show", MODEL),
                ("rollout", "list"),
            ):
                assert muster(*show, cwd=tmp_path).returncode == 0, show
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == 0
    assert not (tmp_path / "muster-data" / "server.json").exists()
    assert b"Traceback" not in (tmp_path / "server.log").read_bytes()


def broker_answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_second_controller_in_the_same_folder_is_refused(desk: Desk) -> None:
    config = ServerConfig(data=desk.folder / "data", fleet=FLEET, port=0, broker_port=0, device_port=0, open_lab=True)

    with pytest.raises(ServerUnavailable, match="another controller"):
        Controller(config).start()
