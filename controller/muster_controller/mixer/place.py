"""Where a mixer runs, and as whom: its folder, its keys and its connection, put together when it starts.

With TLS it has a certificate of the fleet, which `certificate` asks for; without, the broker is a lab's, takes anybody,
and the fleet must be named.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from muster_controller.mixer import certificate
from muster_controller.mixer.errors import MixerConfigInvalid
from muster_controller.mixer.folder import MixerFolder
from muster_shared import ids
from muster_shared.ids import FleetId
from muster_shared.link import BrokerAddress, LinkConfig, parse_broker_url


@dataclass(frozen=True)
class Place:
    """What `process.run` needs to know of the world.

    Attributes:
        data: the mixer's folder, which holds the ledger.
        link: broker, files of the certificate and client id; sessions and bounds are set by `process`.
        keys: by `metrics.key_id`: what windows may be sealed to.
        key: the newest of them.
    """

    data: Path
    mixer: str
    fleet: FleetId
    link: LinkConfig
    keys: Mapping[str, X25519PrivateKey]
    key: str


def find_place(folder: MixerFolder, broker_url: str | None, fleet: str | None) -> Place:
    """Return where the mixer of `folder` runs; a certificate is asked for where it needs one.

    Args:
        broker_url: instead of the one that the controller tells.
        fleet: without a certificate: the one whose topics they are.
    Raises:
        MixerError: the folder lacks something, or the controller gives no certificate; WireError: `fleet` is no name.
    """
    card, keys = folder.card(), folder.seal_keys()
    broker = None if broker_url is None else parse_broker_url(broker_url)
    if broker is not None and not broker.tls:
        if fleet is None:
            raise MixerConfigInvalid("a broker without TLS gives no certificate to tell the fleet by; add --fleet")
        link = LinkConfig(broker=broker, client_id=f"muster-mixer-{ids.name(fleet, 'fleet')}-{card.mixer}")
        return Place(folder.path, card.mixer, FleetId(fleet), link, keys, card.key_id)
    connection = certificate.ensure(folder, time.time)
    if fleet not in (None, connection.fleet):
        raise MixerConfigInvalid(f"this mixer was admitted to fleet {connection.fleet}; leave --fleet away")
    link = _with_broker(connection.link, broker)
    return Place(folder.path, card.mixer, connection.fleet, link, keys, card.key_id)


def _with_broker(link: LinkConfig, broker: BrokerAddress | None) -> LinkConfig:
    if broker is None:
        return link
    if broker.username is None:
        return replace(link, broker=broker)
    return replace(link, broker=broker, cert_path=None, key_path=None)  # A password is who we are there.
