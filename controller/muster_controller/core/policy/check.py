"""What a policy may not be: values out of range, fields that contradict each other, conditions that can never be met.

For any fleet; what only a known one shows is `fleet`'s. Every refusal names the field. No repairs.
"""

from collections.abc import Iterator, Mapping

from muster_controller.core import selector as selectors
from muster_controller.core.policy.fields import (
    CAUSES,
    DEFAULT_WAVES,
    WAVES_MAX,
    Approval,
    Policy,
    PolicyInvalid,
    Threshold,
)
from muster_controller.core.policy.measures import (
    is_percent,
    longest_wait_s,
    minute_of_day,
    waves_possible,
    weekdays,
)
from muster_shared.messages import Refusal

DAY_S = 86400.0
LIST_MAX = 32
"""Thresholds, approvals, windows, and names of one approval."""
NAME_MAX = 120
LATENCY_TOLERANCE_MAX = 0.2
"""F3 clips differences to log ratios of +-0.25; a tolerance near e**0.25 - 1 could never be exceeded."""

RANGES: Mapping[str, tuple[float, float]] = {
    "priority": (0, 1000),
    "soak_s": (0, 90 * DAY_S),
    "success_required": (0, 1),
    "alpha": (1e-6, 0.5),
    "failure_objective": (1e-6, 0.5),
    "tolerance": (1, 10),
    "latency_tolerance": (0, LATENCY_TOLERANCE_MAX),
    "disagreement_objective": (1e-6, 0.5),
    "controls_per_device": (0, 100),
    "window_s": (0.1, 30 * DAY_S),
    "window_max_s": (0.1, 60 * DAY_S),
    "requests_min": (0, 10**9),
    "download_s": (1, 90 * DAY_S),
    "deadline_s": (1, 90 * DAY_S),
    "retries": (0, 10),
    "retry_wait_s": (0, 7 * DAY_S),
    "defer_s_max": (0, 90 * DAY_S),
    "ramp.first": (1, 10**6),
    "ramp.factor": (1, 1000),
    "ramp.harm_max": (0.1, 10**6),
    "ramp.waves_max": (1, WAVES_MAX),
    "rate.per_minute": (0.001, 10**6),
    "rate.factor": (1, 100),
    "rate.every": (1, 10**6),
    "rate.per_minute_max": (0.001, 10**6),
    "weights.failures": (0, 10**6),
    "weights.latency": (0, 10**6),
    "weights.agreement": (0, 10**6),
    "trial.share": (0.0001, 1),
    "trial.requests_min": (1, 10**6),
    "trial.seconds_max": (1, 7 * DAY_S),
    "trial.disagreement_max": (0, 1),
    "trial.latency_ratio_max": (1, 1000),
    "abort_when[].minimum": (1, 10**6),
    "approvals[].count": (1, LIST_MAX),
}
"""By path: the least and the greatest value, both allowed. The JSON Schema publishes them."""


def check(policy: Policy) -> None:
    """Raise PolicyInvalid when `policy` cannot be evaluated or satisfied, whatever the fleet."""
    for path, (low, high) in RANGES.items():
        for field, value in _at(policy, path):
            if not low <= value <= high:  # A value that is not a number fails this as well.
                raise PolicyInvalid(f"{field} is {value:g}; it must be from {low:g} to {high:g}", field)
    for name in ("waves", "abort_when", "approvals", "maintenance"):
        limit = WAVES_MAX if name == "waves" else LIST_MAX
        if (found := len(getattr(policy, name))) > limit:
            raise PolicyInvalid(f"there are {found} {name}; the limit is {limit}", name)
    _selector(policy)
    _pace(policy)
    _times(policy)
    _evidence(policy)
    _required(policy)
    for position, threshold in enumerate(policy.abort_when):
        _threshold(policy, threshold, f"abort_when[{position}]")
    for position, approval in enumerate(policy.approvals):
        _approval(policy, approval, f"approvals[{position}]")
    _deferral(policy)


def _at(policy: Policy, path: str) -> Iterator[tuple[str, float]]:
    """Every value at `path`, with the path it really has; `[]` stands for each entry of a list."""
    first, _, rest = path.partition(".")
    found = getattr(policy, first.removesuffix("[]"))
    if first.endswith("[]"):
        for position, entry in enumerate(found):
            yield f"{first[:-1]}{position}].{rest}", getattr(entry, rest)
        return
    value = getattr(found, rest) if rest and found is not None else found
    if value is not None:
        yield path, value


def _selector(policy: Policy) -> None:
    try:
        selector = selectors.parse(policy.selector)
    except selectors.SelectorInvalid as error:
        raise PolicyInvalid(f"selector: {error}", "selector") from error
    if why := selectors.contradiction(selector):
        raise PolicyInvalid(f"selector {policy.selector!r} can match no device: {why}", "selector")


def _pace(policy: Policy) -> None:
    if policy.ramp is not None and policy.waves != DEFAULT_WAVES:
        raise PolicyInvalid("waves and ramp are both given; write one of them", "waves")
    if not policy.waves:
        raise PolicyInvalid('waves is empty; write at least one, such as "100%"', "waves")
    for position, wave in enumerate(policy.waves):
        _count_or_share(wave, f"waves[{position}]", "a wave", "devices")
    if policy.concurrency is not None:
        _count_or_share(policy.concurrency, "concurrency", "concurrency", "devices")
    rate = policy.rate
    if rate is not None and rate.per_minute_max is not None and rate.per_minute_max < rate.per_minute:
        raise PolicyInvalid(
            f"rate.per_minute_max ({rate.per_minute_max:g}) is below rate.per_minute ({rate.per_minute:g});"
            " raise it, or leave it out",
            "rate.per_minute_max",
        )


def _times(policy: Policy) -> None:
    if policy.window_max_s < policy.window_s:
        raise PolicyInvalid(
            f"window_max_s ({policy.window_max_s:g}) is shorter than window_s ({policy.window_s:g})", "window_max_s"
        )
    parts = {"window_max_s": policy.window_max_s}
    if policy.trial is not None:
        parts["trial.seconds_max"] = policy.trial.seconds_max
    if policy.download_s is not None:
        parts["download_s"] = policy.download_s
    if policy.deadline_s <= sum(parts.values()):
        named = " + ".join(f"{name} ({value:g})" for name, value in parts.items())
        rest = "a device needs time to test and to switch" if policy.download_s else "a device needs time to fetch"
        raise PolicyInvalid(
            f"deadline_s ({policy.deadline_s:g}) must be longer than {named}: {rest} before it is measured,"
            " or each is called silent",
            "deadline_s",
        )


def _evidence(policy: Policy) -> None:
    weights = policy.weights
    used = {
        "failures": weights.failures,
        "latency": weights.latency if policy.controls_per_device else 0.0,
        "agreement": weights.agreement if policy.trial is not None else 0.0,
    }
    if sum(used.values()) <= 0:
        raise PolicyInvalid(
            "weights: nothing that can be measured has weight (latency needs controls_per_device, agreement needs a"
            " trial); give failures a weight above 0",
            "weights",
        )


def _required(policy: Policy) -> None:
    needs = {"latency": ("controls_per_device", policy.controls_per_device), "agreement": ("trial", policy.trial)}
    for name in policy.metrics_required:
        needed, value = needs[name]
        if not value or not getattr(policy.weights, name):
            raise PolicyInvalid(
                f"metrics_required names {name}, which nobody measures without {needed} and a weight above 0:"
                " no wave could ever pass",
                "metrics_required",
            )


def _threshold(policy: Policy, threshold: Threshold, field: str) -> None:
    _count_or_share(threshold.failures, f"{field}.failures", "an error condition", "failed devices")
    reason = threshold.reason
    if reason is None:
        return
    field = f"{field}.reason"
    if reason not in CAUSES:
        raise PolicyInvalid(
            f"{field} is {reason!r}, of which no device ever fails, so it could never abort;"
            f" write one of {', '.join(sorted(CAUSES))}",
            field,
        )
    if reason == Refusal.TRIAL_FAILED.value and policy.trial is None:
        raise PolicyInvalid(f"{field} is {reason!r}, but there is no trial, so it could never abort", field)
    if reason == Refusal.NO_CONSENT.value and not (policy.consent or policy.maintenance):
        raise PolicyInvalid(
            f"{field} is {reason!r}, but there is neither consent nor maintenance, so it could never abort", field
        )


def _approval(policy: Policy, approval: Approval, field: str) -> None:
    if isinstance(approval.before, int):
        last = waves_possible(policy)
        if not 1 <= approval.before <= last:
            raise PolicyInvalid(
                f"{field}.before is {approval.before}, but there are waves 1 to {last} at most:"
                " it would never be asked for",
                f"{field}.before",
            )
    elif approval.before not in ("finish", "every"):
        raise PolicyInvalid(
            f'{field}.before is {approval.before!r}; write a wave from 1, "finish" or "every"', f"{field}.before"
        )
    if len(approval.by) > LIST_MAX:
        raise PolicyInvalid(f"{field}.by has {len(approval.by)} names; the limit is {LIST_MAX}", f"{field}.by")
    for position, name in enumerate(approval.by):
        if not name.strip() or len(name) > NAME_MAX:
            raise PolicyInvalid(
                f"{field}.by[{position}] is no name: 1 to {NAME_MAX} characters", f"{field}.by[{position}]"
            )
        if name in approval.by[:position]:
            raise PolicyInvalid(
                f"{field}.by names {name!r} twice; nobody is a second person to themselves", f"{field}.by[{position}]"
            )
    if approval.by and approval.count > len(approval.by):
        raise PolicyInvalid(
            f"{field}.count is {approval.count}, but by names {len(approval.by)}: nobody could open this gate",
            f"{field}.count",
        )


def _deferral(policy: Policy) -> None:
    for position, maintenance in enumerate(policy.maintenance):
        field = f"maintenance[{position}]"
        if weekdays(maintenance.days) is None:
            raise PolicyInvalid(
                f'{field}.days is {maintenance.days!r}; write days and ranges such as "mon-fri" or "sat,sun"',
                f"{field}.days",
            )
        for name in ("start", "end"):
            text: str = getattr(maintenance, name)
            if minute_of_day(text) is None or (name == "start" and text == "24:00"):
                raise PolicyInvalid(
                    f'{field}.{name} is {text!r}; write a time of the day such as "01:00"', f"{field}.{name}"
                )
        if maintenance.start == maintenance.end:
            raise PolicyInvalid(
                f'{field} begins and ends at {maintenance.start}; for the whole day write "00:00" to "24:00"',
                f"{field}.end",
            )
    if (policy.consent or policy.maintenance) and policy.defer_s_max <= 0:
        what = "consent" if policy.consent else "maintenance"
        raise PolicyInvalid(
            f'defer_s_max is 0, but {what} lets devices defer: say how long, such as "1d"', "defer_s_max"
        )
    needed = longest_wait_s(policy)
    if policy.defer_s_max < needed:
        raise PolicyInvalid(
            f"defer_s_max is {policy.defer_s_max:g}, but a device that just missed a maintenance window needs up to"
            f" {needed:g} seconds to the end of the next: it cannot be satisfied; raise it, or add windows",
            "defer_s_max",
        )


def _count_or_share(value: int | str, field: str, what: str, counted: str) -> None:
    if isinstance(value, str):
        if not is_percent(value):
            raise PolicyInvalid(
                f'{field} is {value!r}; {what} is a number of {counted} or a share such as "25%"', field
            )
    elif value < 1:
        raise PolicyInvalid(f"{field} is {value}; {what} has at least one of {counted}", field)
