"""Alerts by MQTT: one message with QoS 1, not retained, on a topic of somebody's own broker.

mqtts://[user@]host[:8883]/topic   TLS, with the system's roots or the receiver's own
mqtt://host[:1883]/topic           without TLS, for a broker in one's own network; takes no password

The payload is that of a webhook, with the notice's id in it: the same for every try. It is not signed: who may publish
on the topic is for the broker to say. It is never the fleet's own broker, whose permissions have no topic for alerts.
"""

import queue
import random
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from muster_controller.alerts.errors import ReceiverInvalid, TellingFailed
from muster_controller.core.alerts.grouping import Body
from muster_controller.db.receiver_store import Receiver
from muster_shared.link import (
    BrokerAddress,
    BrokerUrlInvalid,
    Delivered,
    Disconnected,
    Link,
    LinkConfig,
    LinkError,
    LinkItem,
    PublishRefused,
    parse_broker_url,
)

ADDRESS_MAX: Final = 2000
TOPIC_MAX: Final = 512
TOTAL_S: Final = 15.0
STOP_S: Final = 1.0
AGAIN_S: Final = 0.5
LOST_S: Final = 3.0  # A broker that knows MQTT 3.1.1 alone may hang up twice before it is spoken to in that.
ITEMS_MAX: Final = 100
SAID_MAX: Final = 120


class Login(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a receiver's broker is convinced, and what convinces us. Kept where a webhook keeps its secret.

    Attributes:
        ca: PEM, the roots that its certificate chains to; empty: the system's.
        certificate: PEM, a client certificate, its chain, and its key without a passphrase; empty: none.
    """

    password: str = ""
    ca: str = ""
    certificate: str = ""


_login: msgspec.json.Decoder[Login] = msgspec.json.Decoder(Login)


@dataclass(frozen=True)
class Target:
    """Where notices are published."""

    broker: BrokerAddress
    topic: str


def check_target(address: str, login: Login) -> str:
    """Return what is kept of `login`. Raises ReceiverInvalid, which repeats nothing of either."""
    broker = parse_target(address).broker
    if login != Login() and not broker.tls:
        raise ReceiverInvalid("mqtt:// would carry a password in the clear, and has no certificates; use mqtts://")
    if bool(login.password) != bool(broker.username):
        raise ReceiverInvalid("an MQTT user and a password go together: mqtts://user@host/topic and a password")
    for text, what in ((login.ca, "CERTIFICATE"), (login.certificate, "CERTIFICATE"), (login.certificate, "KEY")):
        if text and (f"{what}-----" not in text or not text.isascii()):
            raise ReceiverInvalid("roots are PEM, and so is a certificate, with its chain and its key in one file")
    return "" if login == Login() else msgspec.json.encode(login).decode()


def parse_target(address: str) -> Target:
    """Return what an address as above says. Raises ReceiverInvalid."""
    expected = "a topic is written mqtts://user@host/topic or mqtt://host/topic, in ASCII (%20 and so on)"
    if len(address) > ADDRESS_MAX or not address.isascii() or not address.isprintable() or " " in address:
        raise ReceiverInvalid(expected)
    try:
        parts = urlsplit(address)
        broker = parse_broker_url(f"{parts.scheme}://{parts.netloc}")
    except (ValueError, BrokerUrlInvalid) as error:
        raise ReceiverInvalid(expected) from error
    if broker.password is not None:
        raise ReceiverInvalid("an MQTT address holds no password; hand it in beside it (--password-file)")
    topic = unquote(parts.path.removeprefix("/"))
    if not topic or len(topic) > TOPIC_MAX or "?" in address or "#" in address:  # Empty ones, too.
        raise ReceiverInvalid(expected)
    if topic.startswith("$") or not topic.isprintable() or any(letter in topic for letter in "+#"):
        raise ReceiverInvalid("alerts go to one topic, without wildcards, that does not begin with $")
    return Target(broker, topic)


class Publisher:
    """Publishes to brokers: a connection for each notice. Safe from any thread."""

    def __init__(self, *, total_s: float = TOTAL_S) -> None:
        self._total_s = total_s

    def send(self, receiver: Receiver, notice: str, body: Body, now: float) -> None:
        """Return once the broker has it. Raises TellingFailed."""
        target = parse_target(receiver.address)
        payload = msgspec.json.encode({"id": notice, **msgspec.structs.asdict(body)})
        items: queue.Queue[LinkItem] = queue.Queue(ITEMS_MAX)
        with _config(target, receiver.secret) as config:
            link = Link(config, items.put_nowait, rng=random.SystemRandom())
            try:
                mid = link.publish(target.topic, payload, qos=1)
                link.start()
                trouble = self._outcome(items, mid)
            except LinkError as error:
                trouble = str(error)
            finally:
                link.stop(STOP_S)
        if trouble:
            # What the network says may name the host; the address is for admins alone.
            said = trouble.replace(target.broker.host, "the broker")
            raise TellingFailed(receiver.name, said[:SAID_MAX])

    def _outcome(self, items: "queue.Queue[LinkItem]", mid: int) -> str:
        """Return what went wrong; empty: the broker has the message."""
        deadline, trouble = time.monotonic() + self._total_s, "no answer"
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                item = items.get(timeout=left_s)
            except queue.Empty:
                break
            match item:
                case Delivered(delivered) if delivered == mid:
                    return ""
                case PublishRefused(refused, reason) if refused == mid:
                    return f"the broker does not take it: {reason}"
                case Disconnected(reason):
                    trouble, deadline = reason, min(deadline, time.monotonic() + LOST_S)
                case _:
                    pass
        return f"not delivered: {trouble}"


@contextmanager
def _config(target: Target, secret: str) -> Iterator[LinkConfig]:
    """The settings of a connection; certificates are in files (mode 0600) while it lasts."""
    login = _login.decode(secret) if secret else Login()
    broker = target.broker
    if login.password:
        broker = BrokerAddress(broker.host, broker.port, broker.tls, broker.username, login.password)
    with ExitStack() as stack:

        def file(content: str) -> Path | None:
            if not content:
                return None
            kept = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem", encoding="ascii"))
            kept.write(content)
            kept.flush()
            return Path(kept.name)

        certificate = file(login.certificate)
        yield LinkConfig(
            broker,
            client_id=f"muster-{secrets.token_hex(6)}",  # Nobody is pushed out, and 23 characters are for all brokers.
            clean_start=True,
            reconnect_min_s=AGAIN_S,
            reconnect_max_s=AGAIN_S,
            ca_path=file(login.ca),
            cert_path=certificate,
            key_path=certificate,
        )
