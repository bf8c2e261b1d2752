"""What a release declares of itself, set against a policy: a bigger model is slower, and its publisher says so. Pure.

The signed objective (p95 latency) of the new release against that of the one before is how much slower it is meant to
be. The gate tolerates that, and looks for what comes on top; each device still holds the release to its objective.
"""

from msgspec.structs import replace

from muster_controller.core.policy.check import LATENCY_TOLERANCE_MAX
from muster_controller.core.policy.fields import Policy


def with_declared_latency(policy: Policy, before_ms: float | None, after_ms: float) -> tuple[Policy, str]:
    """Return the policy that the gate goes by, and a sentence where it differs from what was written.

    Args:
        before_ms: The p95 that the release before declares, > 0; None when there is none.
        after_ms: What the new one declares, > 0.
    """
    if before_ms is None or not policy.weights.latency or after_ms <= before_ms * (1 + policy.latency_tolerance):
        return policy, ""
    slower = after_ms / before_ms - 1
    said = f"the release declares a p95 of {after_ms:g} ms after {before_ms:g} ms"
    if slower <= LATENCY_TOLERANCE_MAX:
        return replace(policy, latency_tolerance=slower), f"{said}: the gate tolerates {slower:.0%}"
    others = policy.weights.failures + (policy.weights.agreement if policy.trial is not None else 0.0)
    weights = replace(policy.weights, latency=0.0, failures=policy.weights.failures if others else 1.0)
    required = tuple(name for name in policy.metrics_required if name != "latency")
    return (
        replace(policy, weights=weights, metrics_required=required),
        f"{said}: too much to be told from harm, so each device judges its latency by that objective alone",
    )
