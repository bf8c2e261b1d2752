"""Where the fleet world tells its promises what happens. What a promise does not override costs nothing."""

from collections.abc import Callable, Collection, Sequence

from muster_agent.core.state import DeviceState
from muster_controller.core.rollout.events import Changes, Order
from muster_controller.core.rollout.state import Rollout
from muster_controller.holds import Hold
from muster_controller.ports import Desired
from muster_shared.ids import DeviceId, Sha256
from muster_shared.messages import EventBody


class Watcher:
    """All of these may raise; what they raise ends the run."""

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        """A device's journal was written; `first` is the number of the first of its new events."""

    def asked(self, device: DeviceId, bundle: Sha256) -> None:
        """A device begins to download a release."""

    def rotted(self, device: DeviceId, bundle: Sha256) -> None:
        """A file of a release changed by itself on a device's disk."""

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        """A rollout was written, in a transaction that was kept."""

    def desired(self, before: Desired, after: Desired) -> None:
        """What a device should run was written, in a transaction that was kept."""

    def transacted(self) -> None:
        """Everything that one transaction wrote has been told."""

    def published(self, device: DeviceId, envelope: bytes) -> None:
        """A controller published an assignment."""

    def ordered(self, rollout: Rollout, order: Order, actor: str) -> None:
        """An operator gave an order and it was obeyed; `rollout` as it was before."""

    def held(self, device: DeviceId, hold: Hold | None) -> None:
        """An operator ordered that a device is held, or (None) is not any more; no controller knows yet."""

    def reads(self, devices: Collection[DeviceId]) -> None:
        """A controller has read of the holds of these, set or lifted, and begins to do what follows."""

    def followed(self, devices: Collection[DeviceId]) -> None:
        """A controller did what follows from the holds of these, set or lifted."""

    def unsteady(self) -> None:
        """The clock of a controller was set, or another process took over: what is counted by time begins anew."""

    def looked(self) -> None:
        """An hour has passed, in which everything went on as it did."""

    def ended(self) -> None:
        """Faults stopped long ago and everything has settled."""


class Watchers(Watcher):
    """Tells everyone who joined, in order."""

    NAMES = (
        "committed",
        "asked",
        "rotted",
        "saved",
        "desired",
        "transacted",
        "published",
        "ordered",
        "held",
        "reads",
        "followed",
        "unsteady",
        "looked",
        "ended",
    )

    def __init__(self) -> None:
        self._calls: dict[str, list[Callable[..., None]]] = {name: [] for name in self.NAMES}

    def join(self, member: Watcher) -> None:
        for name in self.NAMES:
            if getattr(type(member), name) is not getattr(Watcher, name):
                self._calls[name].append(getattr(member, name))

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for call in self._calls["committed"]:
            call(device, before, after, bodies, first)

    def asked(self, device: DeviceId, bundle: Sha256) -> None:
        for call in self._calls["asked"]:
            call(device, bundle)

    def rotted(self, device: DeviceId, bundle: Sha256) -> None:
        for call in self._calls["rotted"]:
            call(device, bundle)

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        for call in self._calls["saved"]:
            call(before, after, changes)

    def desired(self, before: Desired, after: Desired) -> None:
        for call in self._calls["desired"]:
            call(before, after)

    def transacted(self) -> None:
        for call in self._calls["transacted"]:
            call()

    def published(self, device: DeviceId, envelope: bytes) -> None:
        for call in self._calls["published"]:
            call(device, envelope)

    def ordered(self, rollout: Rollout, order: Order, actor: str) -> None:
        for call in self._calls["ordered"]:
            call(rollout, order, actor)

    def held(self, device: DeviceId, hold: Hold | None) -> None:
        for call in self._calls["held"]:
            call(device, hold)

    def reads(self, devices: Collection[DeviceId]) -> None:
        for call in self._calls["reads"]:
            call(devices)

    def followed(self, devices: Collection[DeviceId]) -> None:
        for call in self._calls["followed"]:
            call(devices)

    def unsteady(self) -> None:
        for call in self._calls["unsteady"]:
            call()

    def looked(self) -> None:
        for call in self._calls["looked"]:
            call()

    def ended(self) -> None:
        for call in self._calls["ended"]:
            call()
