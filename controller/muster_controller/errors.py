"""The controller's part of the error tree.

MusterError
├── PolicyInvalid         (in `core.policy`) a policy that cannot be evaluated or satisfied
├── OrderRefused          (in `core.rollout`) an order that the rollout's state does not allow
├── NotFound              no such device, model, release or rollout
├── Conflict              it would contradict what is already under way
├── KeyReused             an idempotency key came with another request before
├── Stale                 what it would change has changed since it was looked at
├── FleetUnavailable      the fleet cannot take an order now
├── AuditBroken           the audit log does not hold
├── ServerUnavailable     the data folder or the port is in use
├── ReceiverInvalid       (in `alerts.errors`) an address or setting that cannot be used
├── TellingFailed         (in `alerts.errors`) a receiver did not take a notice
├── LedgerError           (in `db.errors`) the database
├── BrokerUnavailable     (in `broker.embedded`) no broker can be started
└── RegistryError         (in `registry.errors`) keys, signatures, bundles, blobs
"""

from muster_shared.errors import MusterError


class NotFound(MusterError):
    """No such thing. `what` is device, model, release or rollout."""

    def __init__(self, what: str, name: str, hint: str = "") -> None:
        hint = hint or f"`muster {what} list` shows what there is"
        super().__init__(f"there is no {what} {name!r}; {hint}")
        self.what = what
        self.name = name


class Conflict(MusterError):
    """It would contradict what is already under way."""


class KeyReused(MusterError):
    """An idempotency key came with another request before."""


class Stale(MusterError):
    """What an order would change has changed since it was looked at (`If-Match`)."""


class FleetUnavailable(MusterError):
    """The fleet cannot take an order now: too much to do, or on its way down."""


class AuditBroken(MusterError):
    """The audit log does not hold: somebody wrote into its tables, or restored a part of them."""


class ServerUnavailable(MusterError):
    """The server cannot start: its data folder or its port is in use."""
