"""The rollout policy: what an operator wrote, as values, and the refusal of what cannot be evaluated or satisfied.

No documents (`muster_controller.policy_document` reads and writes them) and no decisions about a running rollout.
"""

from muster_controller.core.policy.check import RANGES, check
from muster_controller.core.policy.declared import with_declared_latency
from muster_controller.core.policy.fields import (
    CAUSES,
    DEFAULT_WAVES,
    WAVES_MAX,
    Approval,
    Maintenance,
    Policy,
    PolicyInvalid,
    Ramp,
    Rate,
    Threshold,
    Weights,
)
from muster_controller.core.policy.fleet import satisfiable
from muster_controller.core.policy.measures import (
    in_flight_max,
    is_percent,
    per_minute,
    share_of,
    wave_sizes,
    windows,
)

__all__ = [
    "CAUSES",
    "DEFAULT_WAVES",
    "RANGES",
    "WAVES_MAX",
    "Approval",
    "Maintenance",
    "Policy",
    "PolicyInvalid",
    "Ramp",
    "Rate",
    "Threshold",
    "Weights",
    "check",
    "in_flight_max",
    "is_percent",
    "per_minute",
    "satisfiable",
    "share_of",
    "wave_sizes",
    "windows",
    "with_declared_latency",
]
