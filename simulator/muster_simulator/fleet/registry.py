"""Releases of a fleet world: real manifests, signatures at the price of a digest, and no bytes to speak of."""

from collections.abc import Mapping, Sequence

from muster_agent.core.trust import Target
from muster_shared.assignment import Assignment
from muster_shared.bundle import target_path
from muster_shared.ids import ModelName
from muster_shared.messages import Hardware, ReleaseRef
from muster_simulator.fleet.truth import Harm
from muster_simulator.ports.registry import MemoryRegistry
from muster_simulator.stage import Stage


class FleetRegistry(MemoryRegistry):
    """What is signed is not kept: there are hundreds of thousands of assignments."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.targets: Mapping[str, Target] = {}
        """What the release keys vouch for; every device knows it at once."""
        self.harms: dict[str, Harm] = {}
        """By bundle."""

    def publish(self, model: ModelName, number: int, fits: Sequence[Hardware], harm: Harm) -> ReleaseRef:
        ref = self.publish_release(model, number, fits)
        self.harms[ref.bundle_sha256] = harm
        target = Target(ref.bundle_sha256, ref.bundle_length)
        self.targets = {**self.targets, target_path(model, ref.version): target}
        return ref

    def sign_assignments(self, assignments: Sequence[Assignment]) -> list[bytes]:
        signed = super().sign_assignments(assignments)
        self.signed.clear()
        return signed
