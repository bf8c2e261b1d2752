"""What clients of the broker are called in their certificates: the fleet CA writes it, brokers read it."""

from typing import Final

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import FleetId

COMMON_NAME_MAX: Final = 64
"""Characters; RFC 5280, appendix A.1."""
_MIXER: Final = "mixer"


def controller_name(fleet: FleetId) -> str:
    """Return the common name of the client certificate of the controller of `fleet`; no device id has a dot."""
    return f"controller.{fleet}"


def mixer_name(fleet: FleetId, mixer: str) -> str:
    """Return the common name of the certificate of `mixer`; neither a device's nor the controller's looks like it.

    Raises:
        WireError: `mixer` is no name, or the whole is too long for a certificate.
    """
    name = f"{_MIXER}.{ids.name(mixer, 'mixer')}.{fleet}"
    if len(name) > COMMON_NAME_MAX:
        room = COMMON_NAME_MAX - len(name) + len(mixer)
        raise WireError(
            f"mixer {mixer!r} is too long for a certificate of fleet {fleet}; use {room} characters at most"
        )
    return name


def mixer_of(name: str, fleet: FleetId) -> str | None:
    """Return the mixer whose certificate is called `name`; None: it is none of `fleet`."""
    match name.split("."):
        case [kind, mixer, of] if kind == _MIXER and of == fleet and mixer:
            return mixer
        case _:
            return None


def urn(fleet: FleetId, name: str) -> str:
    """Return the URI that stands in the subject alternative name of a client's certificate, beside its common name.

    NATS finds a user by it at once; by the subject it would compare every user in turn, for each connection.
    """
    return f"urn:muster:{fleet}:{name}"
