"""Which broker a controller uses: the one that its operator named, or one that it starts; and how it connects."""

from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit

import structlog

from muster_controller.broker.embedded import start_broker
from muster_controller.config import BROKER_PORT, BROKER_TLS_PORT, ServerConfig
from muster_controller.identity.ca import Paths
from muster_controller.identity.desk import IdentityDesk, broker_url_for_devices
from muster_controller.server.machine import free_port
from muster_shared.link import LinkConfig, parse_broker_url

BROKER_FOLDER: Final = "broker"
BROKER_READY_S: Final = 20.0
SESSION_S: Final = 3600  # The broker keeps for an hour what devices say while the controller is away.
QUEUED_OUT_MAX: Final = 50_000  # An assignment each for a fleet of this size, said at once after a connect.

log = structlog.get_logger()


def find_broker(config: ServerConfig, identity: IdentityDesk, stack: ExitStack) -> tuple[str, str]:
    """Return where this controller and where devices find the broker; start one if nobody else does.

    Raises BrokerUnavailable, BrokerUrlInvalid.
    """
    if config.broker_url:
        return config.broker_url, _without_user(config.broker_url)
    standard = BROKER_PORT if config.open_lab else BROKER_TLS_PORT
    port = (standard if config.broker_port is None else config.broker_port) or free_port()
    security = None if config.open_lab else identity.security
    broker = start_broker(config.broker_kind, config.data / BROKER_FOLDER, port, security=security)
    stack.callback(broker.stop)
    broker.wait_ready(BROKER_READY_S)
    if config.open_lab:
        log.warning("open_lab", broker=broker.url, remedy="for laboratories: any program here may say anything")
        return broker.url, broker.url
    identity.watch(broker)
    return broker.url, broker_url_for_devices(config, port)


def link_config(broker_url: str, client_id: str, paths: Paths) -> LinkConfig:
    broker = parse_broker_url(broker_url)
    with_certificate = broker.tls and broker.username is None  # Whoever gives a password has a broker of another kind.
    return LinkConfig(
        broker=broker,
        ca_path=paths.clients if with_certificate else None,
        cert_path=paths.controller if with_certificate else None,
        key_path=paths.controller if with_certificate else None,
        client_id=client_id,
        session_expiry_s=SESSION_S,
        max_inflight=1000,
        max_queued_out=QUEUED_OUT_MAX,
        reconnect_min_s=0.2,
        reconnect_max_s=10.0,
    )


def _without_user(url: str) -> str:
    """Return a broker's URL as devices use it: their certificates say who they are."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
