"""What an enrolled device's `agent.toml` may leave out, and what goes before what."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from muster_agent.cli.enrol import Plan, config_text, default_class, default_device
from muster_agent.cli.status import identity_lines
from muster_agent.config import load_config, read_config
from muster_agent.errors import ConfigInvalid
from muster_agent.identity.folder import Credentials, Enrolled, IdentityFolder
from muster_shared import ids
from muster_shared.ids import DeviceId, FleetId

ENROLLED = Enrolled(
    fleet=FleetId("harbour"),
    device=DeviceId("crane-07"),
    broker_url="mqtts://broker:8883",
    device_url="https://controller:8443",
    fingerprint="1" * 64,
    identity_fingerprint="2" * 64,
    granted_at=1.0,
    renew_at=2.0,
    expires_at=3.0,
    labels={"site": "berlin"},
)


class Device:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "agent.toml"
        self.identity = IdentityFolder(folder / "identity")
        self.write("")

    def write(self, more: str) -> None:
        self.file.write_text(
            f'fleet = "harbour"\ndevice = "crane-07"\ndevice_class = "x86-cpu"\ndata_dir = "{self.file.parent}"\n{more}'
        )

    def enrol(self, root: bytes = b"{}", **changes: str) -> None:
        enrolled = msgspec.structs.replace(ENROLLED, **changes)
        self.identity.put(Credentials(enrolled=enrolled, session_key=b"k", certificate="c", ca="a", root=root))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_four_lines_are_enough_for_a_device_that_is_enrolled(device: Device) -> None:
    device.enrol()

    config = load_config(device.file, {})

    assert (config.broker.host, config.broker.port, config.broker.tls) == ("broker", 8883, True)
    assert config.bootstrap_root == device.identity.root_path
    assert config.tls.ca == device.identity.ca_path
    assert (config.tls.cert, config.tls.key) == (device.identity.certificate_path, device.identity.session_key_path)
    assert (config.labels, config.granted_labels) == ({}, {"site": "berlin"})


def test_a_device_that_is_not_enrolled_is_told_how(device: Device) -> None:
    with pytest.raises(ConfigInvalid, match="muster-agent enrol"):
        load_config(device.file, {})

    assert read_config(device.file, {}).broker_url == ""


def test_what_is_written_by_hand_goes_on_as_before(device: Device) -> None:
    device.write(
        'broker_url = "mqtts://mine:1234"\nbootstrap_root = "/r.json"\n[tls]\nca = "/ca"\ncert = "/c"\nkey = "/k"\n'
    )

    config = load_config(device.file, {})

    assert (config.broker.host, config.bootstrap_root, config.tls.cert) == ("mine", Path("/r.json"), Path("/c"))


def test_what_is_written_by_hand_goes_before_what_was_granted_and_labels_stay_apart(device: Device) -> None:
    device.enrol()
    device.write('broker_url = "mqtts://mine:1234"\n[tls]\nca = "/ca"\n[labels]\nsite = "bonn"\nhall = "b"\n')

    config = load_config(device.file, {})

    assert (config.broker.host, config.tls.ca, config.tls.cert) == ("mine", Path("/ca"), None)
    assert config.labels == {"site": "bonn", "hall": "b"}
    assert config.granted_labels == {"site": "berlin"}


def test_nobody_grants_labels_to_himself(device: Device) -> None:
    device.enrol()
    device.write('[granted_labels]\nsite = "bonn"\n')

    with pytest.raises(ConfigInvalid, match="granted_labels"):
        load_config(device.file, {})


def test_a_certificate_of_another_device_is_not_used(device: Device) -> None:
    device.enrol(device="crane-08")

    with pytest.raises(ConfigInvalid, match="crane-08"):
        load_config(device.file, {})


def test_a_device_that_was_granted_no_trust_root_says_where_one_comes_from(device: Device) -> None:
    device.enrol(root=b"")

    with pytest.raises(ConfigInvalid, match="muster-agent renew"):
        load_config(device.file, {})


def test_a_key_that_cannot_be_is_refused_at_the_start(device: Device) -> None:
    device.write('[identity]\nkey = "pkcs11:token=a"\n')

    with pytest.raises(ConfigInvalid, match=r"identity\.key: .* no module"):
        read_config(device.file, {})


def test_the_folder_of_the_identity_may_be_elsewhere(device: Device, tmp_path: Path) -> None:
    device.identity = IdentityFolder(tmp_path / "elsewhere")
    device.enrol()
    device.write(f'[identity]\nfolder = "{tmp_path / "elsewhere"}"\n')

    assert load_config(device.file, {}).tls.cert == tmp_path / "elsewhere" / "current" / "session.crt"


def test_the_configuration_that_enrolment_writes_is_read_as_it_was_meant(device: Device, tmp_path: Path) -> None:
    device.enrol()
    key = "pkcs11:token=a;object=who?module-path=/usr/lib/x.so&pin-source=file:/etc/pin"
    plan = Plan(
        controller_url="https://controller:8443",
        device=DeviceId("crane-07"),
        device_class="x86-cpu",
        data_dir=tmp_path,
        folder=tmp_path / "identity",
        key=key,
        labels={"hall": 'the "big" one\\', "größe": "xl"},
    )

    device.file.write_text(config_text(plan, ENROLLED), encoding="utf-8")
    config = load_config(device.file, {})

    assert (config.device, config.device_class, config.identity.key) == ("crane-07", "x86-cpu", key)
    assert config.labels == {"hall": 'the "big" one\\', "größe": "xl"}


def test_what_this_host_is_called_makes_a_name_of_ours() -> None:
    assert ids.name(default_device(), "device")
    assert ids.name(default_class(), "class")


def test_the_status_says_when_a_certificate_is_over_and_why(device: Device) -> None:
    told = {
        "key": "file",
        "fingerprint": "a" * 64,
        "expires_at": 1_800_000_000.0,
        "expires_in_s": -5.0,
        "renewed_at": 1_799_000_000.0,
        "problem": "the controller refused (revoked): stolen",
        "next_at": None,
    }

    lines = identity_lines(told)

    assert "OVER since 2027-01-15 08:00 UTC" in lines[0]
    assert "stolen" in lines[1]
    assert "not asked again" in lines[1]
    assert identity_lines(None) == []


def test_a_running_agent_holds_no_cryptography() -> None:
    script = (
        "import sys, muster_agent.daemon\n"
        "print(sorted({'cryptography', 'pkcs11', 'tuf', 'http.client'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"
