"""The labels that operators gave to devices, by their tokens: they go before whatever a device claims of itself.

A copy of the rows in memory, since the fleet asks for every message. Who is not in it is looked for in the rows, so a
device that enrolled a moment ago, perhaps at another controller, is not believed either.
"""

import threading
from collections.abc import Mapping

from muster_controller.db.identity_store import IdentityStore
from muster_controller.identity.enrolment import IdentityState
from muster_shared.ids import DeviceId

KEPT_MAX = 200_000
"""Who has no identity is remembered too, until the next `refresh`: a broker of the user's may let in anybody."""


class GrantedLabels:
    """Safe from any thread."""

    def __init__(self, store: IdentityStore) -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._granted: dict[DeviceId, Mapping[str, str]] = {}
        self._kept: dict[DeviceId, Mapping[str, str]] = {}
        self._changed: set[DeviceId] = set()

    def __call__(self, device: DeviceId) -> Mapping[str, str]:
        """Return the labels of an accepted device; none for others. Raises LedgerUnavailable."""
        kept = self._kept  # One that `refresh` puts away meanwhile takes what may be old by then with it.
        found = kept.get(device)
        if found is not None:
            return found
        with self._store.reading() as rows:
            identity = rows.identity(device)
        is_in = identity is not None and identity.state is IdentityState.ACCEPTED
        labels = identity.labels if identity is not None and is_in else {}
        if len(kept) < KEPT_MAX:
            kept[device] = labels
        return labels

    def refresh(self) -> None:
        """Read all of them. Raises LedgerUnavailable."""
        with self._store.reading() as rows:
            granted = rows.labels(IdentityState.ACCEPTED)
        with self._mutex:
            self._changed |= {device for device, labels in granted.items() if self._granted.get(device) != labels}
            self._granted, self._kept = granted, dict(granted)

    def changed(self) -> frozenset[DeviceId]:
        """Return whose labels are others than when `took` was told last."""
        with self._mutex:
            return frozenset(self._changed)

    def took(self, devices: frozenset[DeviceId]) -> None:
        """Forget that these changed: whoever uses the labels has them."""
        with self._mutex:
            self._changed -= devices
