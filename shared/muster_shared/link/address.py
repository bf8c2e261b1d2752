"""Where a broker is: the URL that people write, parsed once."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from muster_shared.errors import MusterError


class LinkError(MusterError):
    """The way to the broker refuses something."""


class BrokerUrlInvalid(LinkError):
    """A broker URL that does not say where to connect. The message never repeats the password."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the broker URL {reason}; write mqtt://host:1883 or mqtts://user:password@host:8883")
        self.reason = reason


@dataclass(frozen=True)
class BrokerAddress:
    """Where a broker is, and who we are there."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_broker_url(url: str) -> BrokerAddress:
    """Return the address in `mqtt://[user[:password]@]host[:1883]` or `mqtts://...[:8883]`; both parts of the
    user are percent-decoded.

    Raises:
        BrokerUrlInvalid: the URL says less, or more, than that.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BrokerUrlInvalid("does not parse (is the port between 1 and 65535?)") from error
    if parts.scheme not in ("mqtt", "mqtts"):
        raise BrokerUrlInvalid("does not begin with mqtt:// or mqtts://")
    if not parts.hostname:
        raise BrokerUrlInvalid("names no host")
    if port == 0:
        raise BrokerUrlInvalid("names port 0")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BrokerUrlInvalid("has something after the host and port")
    if parts.password is not None and not parts.username:
        raise BrokerUrlInvalid("has a password but no user")
    tls = parts.scheme == "mqtts"
    return BrokerAddress(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password is not None else None,
    )
