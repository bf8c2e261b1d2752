"""The server's configuration: read once, passed down, never changed."""

from dataclasses import dataclass, field
from pathlib import Path

from muster_controller.broker.embedded import BrokerKind
from muster_shared.ids import FleetId

DATA = Path("muster-data")
FLEET = FleetId("default")
PORT = 8080
BROKER_PORT = 1883
HOST = "127.0.0.1"  # There is no authentication yet, so nothing else is possible.


@dataclass(frozen=True)
class ServerConfig:
    """How one controller runs.

    Attributes:
        data: its folder; one controller at a time may use it.
        database: its URL, which may hold a password; None: a SQLite file in `data`. Of several controllers that share
            one, one leads and the others stand by.
        port: of the API and the page, on 127.0.0.1; 0 takes a free one.
        broker_url: of a broker that somebody else runs; None starts one.
        broker_kind: which program to start.
        broker_port: of the started one, on 127.0.0.1; 0 takes a free one.
        seed: of the random order of devices in rollouts; None takes entropy.
        log_json: one JSON object a line instead of text for a terminal.
    """

    data: Path = DATA
    database: str | None = field(default=None, repr=False)
    fleet: FleetId = FLEET
    port: int = PORT
    broker_url: str | None = None
    broker_kind: BrokerKind = BrokerKind.AUTO
    broker_port: int = BROKER_PORT
    seed: int | None = None
    log_json: bool = False
    verbose: bool = False
