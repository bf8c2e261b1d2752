"""The policy's own error conditions: plain limits on failures, beside the evidence. Pure."""

from collections.abc import Mapping, Sequence

from muster_controller.core.policy import Threshold


def broken_threshold(thresholds: Sequence[Threshold], known: int, failures: Mapping[str, int]) -> str | None:
    """Return which of `thresholds` is passed, as a sentence; None when none is.

    Args:
        known: Treated devices that have an outcome; a share is of these, once there are `minimum` of them.
        failures: How many of them are bad, by cause.
    """
    for threshold in thresholds:
        cause = "probation" if threshold.reason == "rolled_back" else threshold.reason
        bad = sum(failures.values()) if cause is None else failures.get(cause, 0)
        if known < threshold.minimum or not bad:
            continue
        named = f" ({threshold.reason})" if threshold.reason else ""
        limit = threshold.failures
        if bad >= (limit if isinstance(limit, int) else float(limit[:-1]) / 100 * known):
            return f"{bad} of {known} devices failed{named}; the policy aborts at {limit}"
    return None
