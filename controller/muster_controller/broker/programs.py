"""Which programs can be the embedded broker, and how one is found. Starts nothing; `embedded` does."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from muster_controller.broker import mosquitto, nats
from muster_controller.broker.mosquitto import Mosquitto
from muster_controller.broker.nats import Nats
from muster_controller.broker.security import Admission
from muster_shared.errors import MusterError


class BrokerKind(StrEnum):
    """Which program serves; AUTO takes Mosquitto where it is installed, else the NATS server."""

    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    NATS = "nats"


class BrokerUnavailable(MusterError):
    """There is no broker program, its port is taken, or it does not answer; the message says what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class BrokerProgram(Protocol):
    """A server that can be run: `Mosquitto` or `Nats`. It reads its files again on SIGHUP."""

    @property
    def kick_socket(self) -> str | None:
        """The socket in its folder on which `knock.kick` cuts a connection; None where SIGHUP does that itself."""
        ...

    def command(self, configuration: Path) -> list[str]:
        """Return what runs it; the first word is the absolute path of the program."""
        ...

    def files(self, folder: Path, port: int, admission: Admission | None) -> Mapping[str, str]:
        """Return its files by their names in `folder`; `<kind>.conf` is the configuration.

        Args:
            port: of the listener, on 127.0.0.1 or on the host of `admission`.
            admission: who may come, over TLS; None listens without TLS and lets everybody in.
        """
        ...


def find_broker(kind: BrokerKind) -> tuple[BrokerKind, BrokerProgram]:
    """Return the program to run and its kind (never AUTO).

    Raises:
        BrokerUnavailable: it is not installed.
    """
    if kind in (BrokerKind.AUTO, BrokerKind.MOSQUITTO) and (found := Mosquitto.find()) is not None:
        return BrokerKind.MOSQUITTO, found
    if kind in (BrokerKind.AUTO, BrokerKind.NATS) and (server := Nats.find()) is not None:
        return BrokerKind.NATS, server
    match kind:
        case BrokerKind.MOSQUITTO:
            raise BrokerUnavailable("no Mosquitto is installed here", mosquitto.INSTALL_HINT)
        case BrokerKind.NATS:
            raise BrokerUnavailable("no NATS server is installed here", nats.INSTALL_HINT)
        case BrokerKind.AUTO:
            raise BrokerUnavailable(
                "no MQTT broker is installed here",
                f"{mosquitto.INSTALL_HINT}, or {nats.INSTALL_HINT}, or name yours with --broker-url",
            )
