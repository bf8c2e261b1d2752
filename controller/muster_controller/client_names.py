"""What clients of the broker are called in their certificates: the fleet CA writes it, brokers read it."""

from muster_shared.ids import FleetId


def controller_name(fleet: FleetId) -> str:
    """Return the common name of the client certificate of the controller of `fleet`; no device id has a dot."""
    return f"controller.{fleet}"


def urn(fleet: FleetId, name: str) -> str:
    """Return the URI that stands in the subject alternative name of a client's certificate, beside its common name.

    NATS finds a user by it at once; by the subject it would compare every user in turn, for each connection.
    """
    return f"urn:muster:{fleet}:{name}"
