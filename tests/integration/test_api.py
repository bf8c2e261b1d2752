"""The whole controller in one piece: database, registry, broker, API and page, with puppets for devices.

A puppet speaks the wire's messages and nothing else: no trust, no models. What agents do is tested with the agent.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from securesystemslib.dsse import Envelope

from muster_controller.broker.embedded import BrokerKind
from muster_controller.config import ServerConfig
from muster_controller.errors import ServerUnavailable
from muster_controller.registry.operator import add_model, init_operator, load_offline, sign_release
from muster_controller.registry.tuf_repository import create_online_keys
from muster_controller.server import Controller
from muster_shared import assignment, topics
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file, encode_manifest
from muster_shared.ids import DeviceId, EventId, FleetId, ModelName
from muster_shared.link import Connected, Link, LinkConfig, LinkItem, LinkStopped, Received, parse_broker_url
from muster_shared.messages import (
    Event,
    Hardware,
    OutcomeReported,
    Presence,
    ReleaseRef,
    Step,
    StepReached,
    Twin,
    TwinModel,
    encode,
)
from muster_shared.topics import Channel, DeviceTopic

FLEET = FleetId("test")
MODEL = ModelName("digits")
QUICK = {"waves": [1, 2], "window_s": 0.2, "window_max_s": 0.4, "requests_min": 0, "deadline_s": 20.0}


def make_bundle(folder: Path, version: str, release: int) -> Path:
    folder.mkdir(parents=True)
    files = {"model.onnx": f"weights of {version}".encode() * 100, "golden.npz": b"golden" * 50}
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    manifest = Manifest(
        model=MODEL,
        version=version,
        release=release,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        files=tuple(describe_file(name, raw) for name, raw in files.items()),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        card=f"# {MODEL} {version}\n\nHandwritten digits, 8 x 8 pixels.",
    )
    (folder / "bundle.json").write_bytes(encode_manifest(manifest))
    return folder


@dataclass
class Puppets:
    """Devices that obey every assignment at once, and say of each release what `is_good` says of it."""

    broker_url: str
    names: tuple[str, ...]
    is_good: Callable[[str, str], bool] = lambda _device, _version: True
    delay_s: Callable[[], float] = lambda: 0.0
    classes: tuple[str, ...] = ("sim-cpu",)
    fleet: FleetId = FLEET
    _state: dict[str, tuple[int, ReleaseRef | None]] = field(default_factory=dict)
    _sequence: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._link = Link(
            LinkConfig(
                broker=parse_broker_url(self.broker_url),
                client_id=f"puppets-{random.getrandbits(32):x}",
                reconnect_min_s=0.1,
                reconnect_max_s=0.3,
                max_queued_out=100_000,
                max_inflight=1000,
            ),
            self._on_item,
            rng=random.Random(1),
        )
        prefix = f"{topics.ROOT}/{self.fleet}"
        self._link.subscribe([f"{prefix}/device/+/assignment", f"{prefix}/controller"])
        self._link.start()

    def close(self) -> None:
        self._link.stop(1.0)

    def _on_item(self, item: LinkItem) -> None:
        match item:
            case Connected():
                self._report_all()
            case Received(topic, payload, _, _, token):
                self._link.ack(token)
                match topics.parse(self.fleet, topic):
                    case topics.ControllerTopic():
                        self._report_all()
                    case DeviceTopic(device, Channel.ASSIGNMENT) if device in self.names:
                        self._obey(device, payload)
                    case _:
                        pass
            case _:
                pass

    def _report_all(self) -> None:
        for name in self.names:
            presence = Presence(device=DeviceId(name), boot="b", online=True, sent_at=time.time())
            self._say(name, Channel.PRESENCE, encode(presence), retain=True)
            self._report(name)

    def _obey(self, device: DeviceId, raw: bytes) -> None:
        wanted = assignment.parse(Envelope.from_dict(json.loads(raw)).payload)
        for each in wanted.models:
            counter, active = self._state.get(device, (0, None))
            if wanted.counter <= counter:
                return
            good = each.watch is None or self.is_good(device, each.release.version)
            serves = each.release if good else active
            self._state[device] = (wanted.counter, serves)
            if each.watch is None:
                self._report(device)
                continue
            step = StepReached(
                release=each.release, step=Step.SWITCHED, rollout=each.watch.rollout, bytes_fetched=2200, seconds=0.1
            )
            outcome = OutcomeReported(
                release=each.release,
                rollout=each.watch.rollout,
                wave=each.watch.wave,
                good=good,
                reason="as it should" if good else "accuracy 0.31 below 0.95",
            )
            timer = threading.Timer(self.delay_s(), self._tell, (device, wanted.counter, step, outcome))
            timer.daemon = True
            timer.start()

    def _tell(self, device: DeviceId, counter: int, step: StepReached, outcome: OutcomeReported) -> None:
        self._report(device)
        for kind, body in (("step", step), ("outcome", outcome)):
            event = Event(
                id=EventId(f"{device}-{counter}-{kind}"),
                device=device,
                at=time.time(),
                body=body,
            )
            self._say(device, Channel.EVENT, encode(event))

    def _report(self, name: str) -> None:
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
        counter, active = self._state.get(name, (0, None))
        models = (
            () if active is None else (TwinModel(model=MODEL, phase="idle", active=active, engine="onnxruntime cpu"),)
        )
        twin = Twin(
            device=DeviceId(name),
            sent_at=time.time(),
            boot="b",
            sequence=sequence,
            agent_version="0.1.0",
            counter=counter,
            hardware=Hardware(
                device_class=self.classes[self.names.index(name) % len(self.classes)],
                arch="x86_64",
                runtimes=("onnxruntime",),
                memory_mb=1000,
            ),
            labels={"site": "oslo" if self.names.index(name) % 2 else "bergen"},
            models=models,
        )
        self._say(name, Channel.TWIN, encode(twin), retain=True)

    def _say(self, name: str, channel: Channel, payload: bytes, *, retain: bool = False) -> None:
        topic = topics.build(self.fleet, DeviceTopic(DeviceId(name), channel))
        with suppress(LinkStopped):  # A puppet that was put away.
            self._link.publish(topic, payload, qos=1, retain=retain)


def until(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


@dataclass
class Desk:
    """A controller with its operator, and a client of its API."""

    folder: Path
    controller: Controller
    http: httpx.Client
    published: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **params: Any) -> Any:
        return self.http.get(path, params=params).raise_for_status().json()

    def sign(self, version: str, release: int) -> tuple[Path, bytes]:
        bundle = make_bundle(self.folder / f"bundle-{version}", version, release)
        current = self.http.get(f"/models/{MODEL}/metadata")
        base = current.content if current.is_success else None
        return bundle, sign_release(self.folder / "operator", bundle, base, datetime.now(UTC)).metadata

    def publish(self, version: str, release: int) -> httpx.Response:
        bundle, metadata = self.sign(version, release)
        for file in bundle.iterdir():
            if file.name != "bundle.json":
                self.put(file.read_bytes())
        (self.folder / "signed").write_bytes(metadata)
        self.published = {"metadata": metadata.decode(), "manifest": (bundle / "bundle.json").read_text()}
        return self.publish_again()

    def publish_again(self) -> httpx.Response:
        return self.http.post(f"/models/{MODEL}/releases", json=self.published)

    def put(self, raw: bytes, sha256: str | None = None) -> httpx.Response:
        name = sha256 or describe_file("x", raw).sha256
        return self.http.put(f"/blobs/{name}", content=raw, headers={"Content-Type": "application/octet-stream"})

    def roll_out(self, version: str, policy: dict[str, Any] | None = None) -> httpx.Response:
        return self.http.post("/rollouts", json={"model": MODEL, "version": version, "policy": policy or QUICK})

    def state(self, rollout: str) -> str:
        return str(self.get(f"/rollouts/{rollout}")["state"])


def provision(folder: Path) -> None:
    offline = init_operator(folder / "operator", [MODEL], create_online_keys(folder / "data"), datetime.now(UTC))
    assert offline.root


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    provision(tmp_path)
    config = ServerConfig(
        data=tmp_path / "data", fleet=FLEET, port=0, broker_port=0, seed=7, broker_kind=BrokerKind.AUTO
    )
    with Controller(config) as controller, httpx.Client(base_url=f"{controller.url}/api/v1", trust_env=False) as http:
        desk = Desk(tmp_path, controller, http)
        bring_offline(desk)
        yield desk


def bring_offline(desk: Desk) -> None:
    offline = load_offline(desk.folder / "operator")
    body = {"root": offline.root.decode(), "targets": offline.targets.decode(), "keys": offline.keys.decode()}
    assert desk.http.post("/trust/offline", json=body).json() == {"changed": True}


@pytest.fixture
def puppets(desk: Desk) -> Iterator[Puppets]:
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{index:02}" for index in range(6)))) as puppets:
        until(lambda: desk.get("/status")["online"] == 6 and "sim-cpu" in desk.get("/status")["classes"])
        yield puppets


def is_problem(answer: httpx.Response, status: int, kind: str) -> bool:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", body
    assert (answer.status_code, body["type"]) == (status, f"urn:muster:problem:{kind}"), body
    assert body["detail"]
    return True


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
    assert len(desk.get(f"/rollouts/{second}/members")) == 6 + 8
    points = desk.get(f"/rollouts/{second}/evidence")
    assert points[0]["e"] == 1.0
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

    second = desk.roll_out("2.0.0", {**QUICK, "waves": [3]}).json()["id"]

    until(lambda: desk.state(second) == "aborted")
    found = desk.get(f"/rollouts/{second}")
    assert found["verdicts"][-1]["kind"] == "abort"
    assert found["e"] >= found["abort_at"]
    assert found["counts"]["waiting"] == 3


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
    base = desk.controller.url
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
        assert httpx.get(base + path, trust_env=False).status_code == 200, path
    desk.publish("1.0.0", 1)
    rollout = desk.roll_out("1.0.0").json()["id"]
    for path in [*pages, f"/rollouts/{rollout}", "/devices/dev-00"]:
        answer = httpx.get(base + path, trust_env=False)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "style=" not in answer.text, f"{path}: the policy refuses inline styles"
    missing = httpx.get(f"{base}/rollouts/nothing", trust_env=False)
    assert missing.status_code == 404
    assert "there is no rollout" in missing.text


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
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder, stdout=log, stderr=log)
    until(lambda: answers(port), 30.0)
    return process


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v1/health", trust_env=False, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def test_a_controller_that_is_killed_goes_on_and_the_command_line_drives_it(tmp_path: Path) -> None:
    assert muster("status", cwd=tmp_path).returncode == 6
    port, broker_port = free_port(), free_port()
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
    config = ServerConfig(data=desk.folder / "data", fleet=FLEET, port=0, broker_port=0)

    with pytest.raises(ServerUnavailable, match="another controller"):
        Controller(config).start()
