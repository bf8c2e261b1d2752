"""A device enrols from its command line, serves over mTLS with four lines of configuration, and renews by itself."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from harness.device_port import FLEET, Authority, DevicePort
from harness.fleet_of_one import free_port
from harness.soft_token import WHY_NOT, make_token
from muster_agent.core.renewal import Declined, Failed
from muster_agent.identity.asking import Order, ask_in_process
from muster_agent.identity.folder import IdentityFolder
from muster_shared.enrolment import Granted, Refused, Waiting

WAIT_S = 120.0  # Command lines start slowly on a machine that is busy with other tests.
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Scene:
    """A device's folder, and the command line on it."""

    def __init__(self, folder: Path, port: DevicePort) -> None:
        self.folder = folder
        self.port = port
        self.config = folder / "etc" / "agent.toml"
        self.http_port = free_port()

    @property
    def identity(self) -> IdentityFolder:
        return IdentityFolder(self.folder / "data" / "identity")

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        return {**kept, "MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{self.http_port}", **more}

    def say(self, *arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "muster_agent.cli", *arguments, "--config", str(self.config)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env=self.environment(**environment),
        )

    def enrol(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        where = ("--controller", self.port.url, "--token", "-", "--data-dir", str(self.folder / "data"))
        who = ("--device", "crane-07", "--class", "x86-cpu")
        return self.say("enrol", *where, *who, *arguments, stdin=f"{self.port.token}\n")

    def status(self) -> Any:
        connection = HTTPConnection("127.0.0.1", self.http_port, timeout=5)
        try:
            connection.request("GET", "/v1/status")
            return json.loads(connection.getresponse().read())
        except OSError:
            return None
        finally:
            connection.close()

    def page(self) -> str:
        connection = HTTPConnection("127.0.0.1", self.http_port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with closing(DevicePort(tmp_path, Authority())) as port:
        yield Scene(tmp_path, port)


@pytest.fixture
def broker(scene: Scene) -> Iterator[Path]:
    """Mosquitto that asks for certificates of the scene's CA; the path of its log."""
    if MOSQUITTO is None:
        pytest.skip("Mosquitto is not installed (apt-get install mosquitto)")
    folder, authority, port = scene.folder / "broker", scene.port.authority, free_port()
    folder.mkdir()
    authority.server(folder)
    (folder / "ca.pem").write_text(authority.pem)
    log = folder / "log"
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\nrequire_certificate true\nuse_identity_as_username true\n"
        f"cafile {folder / 'ca.pem'}\ncertfile {folder / 'root.crt'}\nkeyfile {folder / 'root.key'}\n"
        f"log_dest stderr\nlog_type all\n" + ("user root\n" if os.geteuid() == 0 else "")
    )
    scene.port.broker_url = f"mqtts://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen([MOSQUITTO, "-c", str(folder / "mosquitto.conf")], stderr=output)
    yield log
    process.terminate()
    process.wait(10)


def test_a_device_enrols_with_one_command_and_the_token_is_nowhere_but_in_the_request(scene: Scene) -> None:
    done = scene.enrol("--labels", "crane=7,hall=b")

    assert done.returncode == 0, done.stderr
    assert "crane-07 is enrolled in fleet harbour" in done.stdout
    assert scene.config.read_text() == (
        f'fleet = "harbour"\ndevice = "crane-07"\ndevice_class = "x86-cpu"\ndata_dir = "{scene.folder / "data"}"\n\n'
        '[labels]\n"crane" = "7"\n"hall" = "b"\n'
    )
    everything = (
        b"".join(path.read_bytes() for path in (scene.folder / "data").rglob("*") if path.is_file())
        + scene.config.read_bytes()
    )
    assert scene.port.token.secret.encode() not in everything
    assert scene.port.token.secret not in done.stdout + done.stderr


def test_who_a_device_is_and_a_renewal_are_one_command_each(scene: Scene) -> None:
    scene.enrol()

    before = json.loads(scene.say("identity", "--json").stdout)
    renewed = json.loads(scene.say("renew", "--json").stdout)
    after = scene.say("identity")

    assert (before["device"], before["fleet"], before["key"]) == ("crane-07", "harbour", "file")
    assert renewed["fingerprint"] != before["fingerprint"]
    assert renewed["identity_fingerprint"] == before["identity_fingerprint"]
    assert renewed["fingerprint"] in after.stdout


def test_each_way_not_to_be_enrolled_has_its_exit_code_and_says_what_to_do(scene: Scene) -> None:
    scene.port.answers = [
        Waiting(retry_s=1.0, reason="accept crane-07 on the page", server_time=time.time()),
        Refused(code="token", reason="this token is used up; make another", server_time=time.time()),
    ]

    waiting, refused = scene.enrol(), scene.enrol()
    no_token = scene.say("enrol", "--controller", scene.port.url)
    wrong = scene.say("enrol", "--controller", scene.port.url, MUSTER_ENROL_TOKEN="muster1.secret")
    away = scene.say("renew")

    assert (waiting.returncode, refused.returncode) == (7, 1)
    assert "accept crane-07 on the page" in waiting.stderr
    assert "used up" in refused.stderr
    assert (no_token.returncode, wrong.returncode, away.returncode) == (2, 2, 2)
    assert "no token" in no_token.stderr
    assert "secret" not in wrong.stderr
    assert not scene.config.exists()


def test_a_device_waits_until_somebody_accepts_it(scene: Scene) -> None:
    scene.port.answers = [Waiting(retry_s=0.1, reason="accept it", server_time=time.time())]

    done = scene.enrol("--wait", "30", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "granted"
    assert done.stderr.count("accept it") == 1


def test_an_agent_that_is_not_enrolled_says_how_to(scene: Scene) -> None:
    scene.enrol()
    shutil.rmtree(scene.identity.path)

    done = scene.say("run")

    assert done.returncode == 2
    assert "muster-agent enrol" in done.stderr


def test_an_enrolled_device_connects_renews_by_itself_and_comes_again_with_the_new_certificate(
    scene: Scene, broker: Path
) -> None:
    granting = scene.port.grant

    def soon(public: ec.EllipticCurvePublicKey, device: str, fleet: str = FLEET) -> Granted:
        granted = granting(public, device, fleet)
        if len(scene.port.requests) > 1:
            return granted
        now = time.time()
        return msgspec.structs.replace(granted, renew_at=now + 0.1, expires_at=now + 20.0)

    scene.port.grant = soon  # type: ignore[method-assign]  # The first certificate is due at once.
    assert scene.enrol().returncode == 0
    first = scene.identity.current()
    assert first is not None
    command = [sys.executable, "-m", "muster_agent.cli", "run", "--config", str(scene.config)]
    with (scene.folder / "agent.log").open("wb") as output:
        agent = subprocess.Popen(command, stderr=output, env=scene.environment())
    try:
        wait_for(lambda: (scene.status() or {}).get("online") is True, agent, "connected")
        wait_for(lambda: scene.status()["identity"]["fingerprint"] != first.fingerprint, agent, "renewed")
        wait_for(lambda: _connections(broker) >= 2, agent, "connected again")
        wait_for(lambda: scene.status()["online"] is True, agent, "online again")
        identity, page = scene.status()["identity"], scene.page()
        shown = scene.say("status")
    finally:
        agent.terminate()
        agent.wait(20)

    assert (identity["problem"], identity["key"], identity["device"]) == ("", "file", "crane-07")
    assert identity["expires_in_s"] > 6 * 86400
    assert 'muster_certificate_renewal_failing{key="file"} 0' in page
    assert "identity  file key, certificate" in shown.stdout
    assert b"u'crane-07'" in broker.read_bytes()


def test_the_process_that_renews_tells_every_outcome(scene: Scene) -> None:
    scene.enrol()
    order = Order(folder=str(scene.identity.path), key="file", agent_version="1.0.0")
    before = scene.identity.current()

    assert asyncio.run(ask_in_process(order)) is None
    renewed = scene.identity.current()
    scene.port.answers = [
        Refused(code="revoked", reason="stolen", server_time=time.time()),
        Waiting(retry_s=60.0, reason="look at it", server_time=time.time()),
    ]
    revoked, waiting = asyncio.run(ask_in_process(order)), asyncio.run(ask_in_process(order))
    scene.identity.key_path.unlink()
    keyless = asyncio.run(ask_in_process(order))

    assert renewed != before
    assert isinstance(revoked, Declined)
    assert (revoked.code, "stolen" in revoked.reason) == ("revoked", True)
    assert waiting == Declined("waiting", "look at it", 60.0)
    assert isinstance(keyless, Failed)
    assert "identity.key" in keyless.reason
    assert scene.identity.current() == renewed


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_device_with_its_key_on_a_token_enrols_and_renews_from_the_command_line(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "")  # It is put back afterwards.
    token = make_token(scene.folder / "token")

    done = scene.enrol("--key", token.uri())
    renewed = scene.say("renew", "--json")

    assert done.returncode == 0, done.stderr
    assert renewed.returncode == 0, renewed.stderr
    assert "identity key pkcs11" in done.stdout
    assert not scene.identity.key_path.exists()
    order = Order(folder=str(scene.identity.path), key=token.uri(), agent_version="1.0.0")
    assert asyncio.run(ask_in_process(order)) is None


def _connections(log: Path) -> int:
    return log.read_bytes().count(b"New client connected")


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert process.poll() is None, f"the agent ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)
