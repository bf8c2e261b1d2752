"""The server's configuration: read once, passed down, never changed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from muster_controller.alerts.smtp import SmtpConfig
from muster_controller.broker.embedded import BrokerKind
from muster_controller.operators.oidc_config import OidcConfig
from muster_shared.ids import FleetId

DATA = Path("muster-data")
FLEET = FleetId("default")
PORT = 8080
BROKER_PORT = 1883
BROKER_TLS_PORT = 8883
DEVICE_PORT = 8443
HOST = "127.0.0.1"


@dataclass(frozen=True)
class TlsFiles:
    """A certificate chain and its key, PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class ServerConfig:
    """How one controller runs.

    Attributes:
        data: its folder; one controller at a time may use it.
        database: its URL, which may hold a password; None: a SQLite file in `data`. Of several controllers that share
            one, one leads and the others stand by.
        port: of the API and the page; 0 takes a free one.
        host: the address that the API and the page listen on; beyond the loopback with `tls` alone.
        names: host names under which operators reach it, beside the loopback's and `host`.
        tls: the certificate of the API and the page; `fleet-ca`: one of the fleet CA; None: plain HTTP, and on the
            loopback alone.
        oidc: whom to ask who somebody is; None: passwords alone.
        broker_url: of a broker that somebody else runs; None starts one.
        broker_kind: which program to start.
        broker_port: of the started one; None: 8883, and 1883 in an open lab; 0 takes a free one.
        open_lab: the started broker listens without TLS on 127.0.0.1, and whoever reaches it may say anything: for
            load tests and laboratories alone.
        device_port: where devices enrol and renew their certificates; 0 takes a free one.
        device_host: the address that the device port and the started broker listen on.
        device_names: host names and addresses under which devices reach it, beside `device_host`; they stand in the
            certificates of the server, and the first in what devices are told.
        adopt_keys: the CA and the keys of `data` take the place of those that the shared `database` knows of.
        smtp: where mail is handed in; None: receivers are webhooks alone.
        seed: of the random order of devices in rollouts; None takes entropy.
        otlp_url: of an OpenTelemetry collector that is sent the metrics of `GET /metrics` each minute; None: nobody.
        log_json: one JSON object a line instead of text for a terminal.
    """

    data: Path = DATA
    database: str | None = field(default=None, repr=False)
    fleet: FleetId = FLEET
    port: int = PORT
    host: str = HOST
    names: tuple[str, ...] = ()
    tls: TlsFiles | Literal["fleet-ca"] | None = None
    oidc: OidcConfig | None = None
    broker_url: str | None = None
    broker_kind: BrokerKind = BrokerKind.AUTO
    broker_port: int | None = None
    open_lab: bool = False
    device_port: int = DEVICE_PORT
    device_host: str = HOST
    device_names: tuple[str, ...] = ()
    adopt_keys: bool = False
    smtp: SmtpConfig | None = None
    seed: int | None = None
    otlp_url: str | None = None
    log_json: bool = False
    verbose: bool = False
