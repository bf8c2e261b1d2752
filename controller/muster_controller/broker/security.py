"""What a secured embedded broker is told: whose certificates it takes, its own, and which devices may come.

Values and call-backs alone. Who issues certificates and who revokes them is `identity`; what each name may do is
`permissions`; what a broker's configuration says about it is `mosquitto` and `nats`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from muster_controller.client_names import controller_name
from muster_shared.ids import DeviceId, FleetId

_LOCAL = ("", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class BrokerSecurity:
    """TLS with certificates of the fleet's own, and a name for everybody.

    The files are read again by `EmbeddedBroker.refresh` and `reload_certificates`, and by every connection that the
    readiness probe makes; the call-backs are asked by `start_broker` and by `refresh`, on the thread that calls.

    Attributes:
        fleet: whose topics the broker carries.
        ca: PEM, every root and intermediate that certificates of devices and of the controller chain to.
        certificate, key: PEM, the broker's own: leaf first, then the intermediate; mode 0600 for the key.
        client_certificate, client_key: PEM, the controller's own client certificate (`CN=controller.<fleet>`). The
            readiness probe shows it; it asks for no session, so the controller's connection is not disturbed.
        devices: those that may come: accepted and not revoked. NATS needs each by its name.
        revoked: those that may not come although their certificate has not expired; mixers by the names in theirs.
        mixers: those that were admitted, by id.
        crl: PEM, one list for each issuer of device certificates; Mosquitto alone reads it, and takes certificates of
            no issuer that has none. It must be valid until the next `refresh`, or everybody is refused, and each must
            have a later `thisUpdate` (to the second) than the one before, or OpenSSL may keep the old one.
            None where nothing writes one; revoked names have no rights all the same.
        host: the address to listen on; empty for every one of this machine.
        name: a host name that stands in the broker's certificate, under which this machine checks it.
    """

    fleet: FleetId
    ca: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path
    devices: Callable[[], Iterable[DeviceId]]
    revoked: Callable[[], Iterable[DeviceId]]
    crl: Path | None = None
    host: str = "127.0.0.1"
    name: str = "localhost"
    mixers: Callable[[], Iterable[str]] = tuple

    @property
    def controller_name(self) -> str:
        """The common name of the controller's client certificate."""
        return controller_name(self.fleet)

    @property
    def local_host(self) -> str:
        """Under which name or address this machine reaches the broker; its certificate must have it."""
        return self.name if self.host in _LOCAL else self.host

    def admission(self) -> "Admission":
        """Ask who may come, now. Raises whatever the call-backs raise."""
        # A broker runs in a folder of its own, and would look for `muster-data` there.
        crl = None if self.crl is None else self.crl.absolute()
        tls = TlsFiles(self.ca.absolute(), self.certificate.absolute(), self.key.absolute(), crl)
        devices, revoked = tuple(sorted(self.devices())), tuple(sorted(self.revoked()))
        return Admission(self.fleet, self.host, tls, devices, revoked, tuple(sorted(self.mixers())))


@dataclass(frozen=True)
class TlsFiles:
    """PEM files as a broker's configuration names them."""

    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None


@dataclass(frozen=True)
class Admission:
    """Who may come at one moment: what a broker's configuration is written from."""

    fleet: FleetId
    host: str
    tls: TlsFiles
    devices: tuple[DeviceId, ...] = ()
    revoked: tuple[DeviceId, ...] = ()
    mixers: tuple[str, ...] = ()
