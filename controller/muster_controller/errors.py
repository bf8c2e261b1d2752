"""The controller's part of the error tree.

MusterError
├── PolicyInvalid         (in `core.policy`) a policy that cannot be evaluated or satisfied
├── OrderRefused          (in `core.rollout`) an order that the rollout's state does not allow
├── NotFound              no such device, model, release or rollout
├── Conflict              it would contradict what is already under way
└── RegistryError         (in `registry.errors`) keys, signatures, bundles, blobs
"""

from muster_shared.errors import MusterError


class NotFound(MusterError):
    """No such thing. `what` is device, model, release or rollout."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(f"there is no {what} {name!r}; `muster {what} list` shows what there is")
        self.what = what
        self.name = name


class Conflict(MusterError):
    """It would contradict what is already under way."""
