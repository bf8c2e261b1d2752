"""How the fleet stands, for routes: the words of `standing`, and the sums of a committed fleet."""

from muster_controller.db.snapshot import Committed
from muster_controller.standing import IDLE, FleetSums, Standing, VersionShare, standing

__all__ = ["IDLE", "FleetSums", "Standing", "VersionShare", "standing", "sums"]


def sums(fleet: Committed) -> FleetSums:
    """Return the fleet at a glance: counted from the index, not from the devices."""
    return fleet.view.sums()
