"""The command line and TLS: logging in, tokens and users with `muster`, and a page that listens with a certificate."""

import datetime
import json
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from harness.browser import Browser
from harness.desk import Desk, client, local_token, open_desk
from muster_controller.api.tls import PageCertificate
from muster_controller.cli.main import app
from muster_controller.config import ServerConfig, TlsFiles
from muster_controller.errors import ServerUnavailable
from muster_controller.server import Controller

PASSWORD = "three plain words"
pytestmark = pytest.mark.usefixtures("quiet")

Muster = Callable[..., Result]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as desk:
        yield desk


@pytest.fixture
def muster(desk: Desk, tmp_path: Path) -> Muster:
    return command(desk, tmp_path)


def command(desk: Desk, home: Path, **more: str) -> Muster:
    def run(*words: str, said: str | None = None, **env: str | None) -> Result:
        fixed = {"COLUMNS": "200", "XDG_CONFIG_HOME": str(home), "MUSTER_TOKEN": None, "MUSTER_URL": None, **more}
        runner = CliRunner(env={**fixed, "MUSTER_DATA": str(desk.folder / "data"), **env})
        return runner.invoke(app, list(words), input=said)

    return run


def done(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if result.stdout.startswith(("[", "{")) else result.stdout


def test_whoever_may_read_the_data_folder_needs_no_login(desk: Desk, muster: Muster) -> None:
    found = done(muster("whoami", "--json"))

    assert (found["kind"], found["role"]) == ("local", "admin")
    assert found["name"].startswith("local:")
    mode = stat.S_IMODE((desk.folder / "data" / "local-token").stat().st_mode)
    assert mode == 0o600
    assert muster("whoami", MUSTER_DATA="/nowhere", MUSTER_URL=desk.controller.url).exit_code == 7


def test_a_login_is_kept_for_its_controller_until_the_logout(desk: Desk, muster: Muster, tmp_path: Path) -> None:
    done(muster("user", "create", "anna", "--role", "publisher", "--selector", "site=oslo", "--reason", "hired"))
    done(muster("user", "password", "anna", "--password-stdin", said=PASSWORD + "\n"))
    elsewhere: dict[str, str | None] = {"MUSTER_DATA": "/nowhere", "MUSTER_URL": desk.controller.url}
    assert muster("status", **elsewhere).exit_code == 7
    assert muster("login", "--name", "anna", "--password-stdin", said="wrong word here\n", **elsewhere).exit_code == 7

    done(muster("login", "--name", "anna", "--password-stdin", said=PASSWORD + "\n", **elsewhere))

    kept = tmp_path / "muster" / "credentials.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert PASSWORD not in kept.read_text()
    found = done(muster("whoami", "--json", **elsewhere))
    assert (found["name"], found["role"], found["selector"]) == ("anna", "publisher", "site=oslo")
    assert done(muster("whoami", "--json"))["name"] == "anna", "a login comes before the local token"
    assert muster("user", "list", **elsewhere).exit_code == 1
    token = json.loads(kept.read_text())[desk.controller.url]["token"]
    done(muster("logout", **elsewhere))
    assert muster("status", **elsewhere).exit_code == 7
    with client(desk.controller.url, token) as former:
        assert former.get("/session").status_code == 401
    assert muster("logout", **elsewhere).exit_code == 1


def test_users_and_tokens_are_kept_by_command(desk: Desk, muster: Muster) -> None:
    made = done(muster("user", "create", "ci", "--role", "operator", "--json"))
    assert made["link"]["link"].startswith(f"{desk.controller.url}/login/once?link=")
    assert muster("user", "create", "ci").exit_code == 5
    assert muster("user", "create", "No Name").exit_code == 1

    nobodys = muster("token", "create", "nightly")
    token = done(muster("token", "create", "nightly", "--for", "ci", "--role", "viewer", "--ttl", "12h", "--json"))

    assert nobodys.exit_code == 1
    assert "--for" in nobodys.stderr
    environment: dict[str, str | None] = {"MUSTER_TOKEN": token["token"]}
    assert done(muster("whoami", "--json", **environment))["role"] == "viewer"
    assert "nightly" in done(muster("token", "list", "--all"))
    assert done(muster("token", "list", "--for", "ci", "--json"))[0]["id"] == token["id"]
    done(muster("token", "revoke", token["id"]))
    assert muster("whoami", **environment).exit_code == 7
    for words in ("disable ci", "enable ci", "unlock ci", "role ci viewer"):
        assert done(muster("user", *words.split(), "--json"))["name"] == "ci"
    assert "viewer" in done(muster("user", "list"))
    assert muster("user", "disable", "nobody").exit_code == 4
    assert done(muster("user", "link", "ci", "--json"))["link"] != made["link"]["link"]


def test_a_token_is_not_sent_in_the_clear_beyond_this_machine(muster: Muster) -> None:
    result = muster("--url", "http://fleet.example.org:8080", "status", MUSTER_TOKEN="mst_x")

    assert result.exit_code == 6
    assert "in the clear" in result.stderr


def test_logins_that_others_can_read_are_not_used(muster: Muster, tmp_path: Path) -> None:
    kept = tmp_path / "muster" / "credentials.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    kept.chmod(0o644)

    result = muster("status")

    assert result.exit_code == 1
    assert "chmod 600" in result.stderr


# -- TLS -----------------------------------------------------------------------------------------------------------


def make_certificate(folder: Path) -> TlsFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controller of a test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("muster.test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(folder / "tls.crt", folder / "tls.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_with_a_certificate_cookies_are_for_tls_alone_and_other_names_count(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    config = ServerConfig(
        data=tmp_path / "data",
        port=0,
        broker_port=0,
        device_port=0,
        open_lab=True,
        host="0.0.0.0",
        names=("muster.test",),
        tls=tls,
    )
    with Controller(config) as controller:
        port = controller.url.rpartition(":")[2]
        here, ca = f"https://127.0.0.1:{port}", str(tls.certificate)
        assert controller.url == f"https://muster.test:{port}"
        link = controller.first_link
        assert link is not None
        with Browser(here, verify=ssl.create_default_context(cafile=ca)) as browser:
            path = link.removeprefix(controller.url)
            answer = browser.fill(path, "/login/once", password=PASSWORD, again=PASSWORD)
            cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith("__Host-muster="))
            assert "Secure" in cookie
            assert browser.http.get("/api/v1/session").json()["name"] == "admin"
            assert browser.http.get("/").headers["strict-transport-security"].startswith("max-age=")
            assert browser.http.get("/", headers={"Host": f"muster.test:{port}"}).status_code in (200, 303)
            assert browser.http.get("/", headers={"Host": "evil.example"}).status_code == 421
        environment = {"MUSTER_TOKEN": local_token(config.data), "XDG_CONFIG_HOME": str(tmp_path), "MUSTER_DATA": "/no"}
        runner = CliRunner(env=environment)
        assert runner.invoke(app, ["--url", here, "--ca", ca, "status", "--json"]).exit_code == 0
        assert runner.invoke(app, ["--url", here, "status"]).exit_code == 6
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)


def test_the_fleet_ca_gives_the_page_a_certificate(tmp_path: Path) -> None:
    config = ServerConfig(
        data=tmp_path / "data", port=0, broker_port=0, device_port=0, open_lab=True, host="0.0.0.0", tls="fleet-ca"
    )

    with Controller(config) as controller:
        root = tmp_path / "data" / "ca" / "root.pem"
        environment = {"MUSTER_DATA": str(config.data), "XDG_CONFIG_HOME": str(tmp_path), "MUSTER_URL": None}
        runner = CliRunner(env={**environment, "MUSTER_TOKEN": None, "MUSTER_CA": None})
        found = runner.invoke(app, ["whoami", "--json"])

        assert controller.url.startswith("https://127.0.0.1:")
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["kind"] == "local"
        trusting = ssl.create_default_context(cafile=root)
        assert httpx.get(f"{controller.url}/healthz", verify=trusting, trust_env=False).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{controller.url}/healthz", trust_env=False)


def test_a_certificate_is_loaded_again_when_its_files_change_and_renewed_when_it_is_due(tmp_path: Path) -> None:
    now, renewals = [0.0], []
    tls = make_certificate(tmp_path)

    def renew() -> float:
        renewals.append(now[0])
        make_certificate(tmp_path)
        return now[0] + 100.0

    page = PageCertificate(tls, lambda: now[0], renew)
    first = loaded(page, tls)
    for now[0] in (50.0, 100.0, 150.0):
        page.turn()

    assert renewals == [0.0, 100.0]
    assert loaded(page, tls) != first
    tls.certificate.write_text("rubbish")
    page.turn()
    assert loaded(page, None) is not None, "what does not fit changes nothing"
    with pytest.raises(ServerUnavailable, match="PEM"):
        PageCertificate(tls, lambda: now[0])


def loaded(page: PageCertificate, trusted: TlsFiles | None) -> bytes:
    """Return the certificate that a client is shown."""
    inside, outside, incoming, outgoing = (ssl.MemoryBIO() for _ in range(4))
    server = page.context.wrap_bio(inside, outgoing, server_side=True)
    context = ssl.create_default_context(cafile=None if trusted is None else str(trusted.certificate))
    context.check_hostname = False
    if trusted is None:
        context.verify_mode = ssl.CERT_NONE
    shown = context.wrap_bio(incoming, outside)
    for _ in range(4):
        for side, out, to in ((shown, outside, inside), (server, outgoing, incoming)):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
            to.write(out.read())
    found = shown.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_beyond_this_machine_it_listens_with_tls_alone(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path / "data", port=0, broker_port=0, device_port=0, open_lab=True, host="0.0.0.0")

    with pytest.raises(ServerUnavailable, match="--tls-cert"):
        Controller(config).start()
