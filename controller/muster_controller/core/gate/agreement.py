"""Agreement: treated devices whose trial disagreed too much, against an objective (the form of F2).

There is nothing to hold back here: each device has compared the candidate with what it runs, on the same inputs.
"""

from collections.abc import Sequence

from muster_controller.core.gate.mixtures import above
from muster_controller.core.gate.strata import Stratum


def against_disagreement(strata: Sequence[Stratum], objective: float = 0.02) -> float:
    """Return the evidence that more than `objective` of the devices, 0 < objective < 1, disagree with the candidate."""
    return above(sum(stratum.disagreed for stratum in strata), sum(stratum.compared for stratum in strata), objective)
