"""Where mail is handed in, and to whom, as settings say it. Light: the command line imports it.

smtps://user@host:465      TLS from the first byte
smtp://user@host:587       STARTTLS, or nothing is sent
smtp+plain://host:25       without TLS, for a relay in one's own network; takes no password
"""

from dataclasses import dataclass, field
from email.headerregistry import Address
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from muster_controller.alerts.errors import ReceiverInvalid

ADDRESS_MAX: Final = 254
PORTS: Final = {"smtps": 465, "smtp": 587, "smtp+plain": 25}
_EXPECTED: Final = (
    "mail is handed in at smtps://user@host, smtp://user@host (STARTTLS) or smtp+plain://host, and nothing else"
)


@dataclass(frozen=True)
class SmtpConfig:
    """Where mail is handed in. `sender`: what stands in `From`."""

    host: str
    port: int
    security: Literal["tls", "starttls", "plain"]
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)


def parse_smtp(url: str, password: str = "", sender: str = "") -> SmtpConfig:
    """Return the settings in a URL as above. Raises ReceiverInvalid, which never repeats the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise ReceiverInvalid(_EXPECTED) from error
    if parts.scheme not in PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ReceiverInvalid(_EXPECTED)
    if parts.password is not None:
        raise ReceiverInvalid("the SMTP URL holds no password; set MUSTER_SMTP_PASSWORD, or name --smtp-password-file")
    user = unquote(parts.username or "")
    if parts.scheme == "smtp+plain" and (password or user):
        raise ReceiverInvalid("smtp+plain would carry the password in the clear; use smtps:// or smtp:// (STARTTLS)")
    if bool(password) != bool(user):
        raise ReceiverInvalid("an SMTP user and a password go together: smtps://user@host and MUSTER_SMTP_PASSWORD")
    security: Literal["tls", "starttls", "plain"] = (
        "tls" if parts.scheme == "smtps" else "starttls" if parts.scheme == "smtp" else "plain"
    )
    said = sender or (user if "@" in user else f"muster@{parts.hostname}")
    return SmtpConfig(parts.hostname, port, security, check_address(said), user, password)


def check_address(address: str) -> str:
    """Return a mail address. Raises ReceiverInvalid."""
    local, at, domain = address.rpartition("@")
    try:
        Address(username=local, domain=domain)
        is_fit = bool(at and local and domain) and address.isascii() and address.isprintable() and " " not in address
    except (ValueError, IndexError):
        is_fit = False
    if not is_fit or len(address) > ADDRESS_MAX or any(letter in address for letter in '<>,;:"\\()[]'):
        raise ReceiverInvalid("a mail address is written name@host, one for each receiver")
    return address
