"""Where the world tells its invariants what happens, as it happens. An observer overrides what it cares about."""

from collections.abc import Callable, Sequence

from muster_agent.core.state import DeviceState
from muster_controller.core.rollout.state import Rollout
from muster_controller.ports import Desired
from muster_shared.bundle import Manifest, Variant
from muster_shared.ids import DeviceId, Sha256
from muster_shared.messages import Event, ReleaseRef


class Observer:
    """All of these may raise; what they raise ends the run."""

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        """A device's journal was written."""

    def lost_power(self, device: DeviceId) -> None:
        """A device is down and its page cache is gone."""

    def tested(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        """A device runs a release for the first time, with the golden cases."""

    def test_passed(self, device: DeviceId, bundle: Sha256) -> None: ...

    def served(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        """A device lets applications use a release."""

    def asked(self, device: DeviceId, sha256: Sha256) -> None:
        """A device wants chunks of a file."""

    def rotted(self, device: DeviceId, sha256: Sha256) -> None:
        """A file on a device's disk changed by itself."""

    def device_stepped(self, device: DeviceId) -> None:
        """A device's process did something and waits."""

    def rollout_saved(self, before: Rollout | None, after: Rollout) -> None: ...

    def desired_saved(self, before: Desired, after: Desired) -> None: ...

    def published(self, device: DeviceId, envelope: bytes) -> None:
        """The controller published an assignment."""

    def ordered(self, rollout: str, order: str) -> None:
        """An operator gave an order and it was obeyed."""

    def controller_stepped(self) -> None: ...

    def ended(self) -> None:
        """Faults stopped long ago and everything has settled."""


class Observers(Observer):
    """Tells everyone in `members`, in order."""

    def __init__(self) -> None:
        self._calls: dict[str, list[Callable[..., None]]] = {}

    def join(self, member: Observer) -> None:
        for name in vars(Observer):
            if not name.startswith("_") and getattr(type(member), name) is not getattr(Observer, name):
                self._calls.setdefault(name, []).append(getattr(member, name))

    def _tell(self, name: str, *facts: object) -> None:
        for call in self._calls.get(name, ()):
            call(*facts)

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        self._tell("committed", device, before, after, events)

    def lost_power(self, device: DeviceId) -> None:
        self._tell("lost_power", device)

    def tested(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        self._tell("tested", device, release, manifest, variant)

    def test_passed(self, device: DeviceId, bundle: Sha256) -> None:
        self._tell("test_passed", device, bundle)

    def served(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        self._tell("served", device, release, manifest, variant)

    def asked(self, device: DeviceId, sha256: Sha256) -> None:
        self._tell("asked", device, sha256)

    def rotted(self, device: DeviceId, sha256: Sha256) -> None:
        self._tell("rotted", device, sha256)

    def device_stepped(self, device: DeviceId) -> None:
        self._tell("device_stepped", device)

    def rollout_saved(self, before: Rollout | None, after: Rollout) -> None:
        self._tell("rollout_saved", before, after)

    def desired_saved(self, before: Desired, after: Desired) -> None:
        self._tell("desired_saved", before, after)

    def published(self, device: DeviceId, envelope: bytes) -> None:
        self._tell("published", device, envelope)

    def ordered(self, rollout: str, order: str) -> None:
        self._tell("ordered", rollout, order)

    def controller_stepped(self) -> None:
        self._tell("controller_stepped")

    def ended(self) -> None:
        self._tell("ended")
