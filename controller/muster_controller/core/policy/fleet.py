"""What a policy may not be once its devices are known: safeguards that so few devices would never reach.

The rest are warnings: what holds, but less well than its author may think.
"""

from collections.abc import Iterator, Mapping
from math import floor

from muster_controller.core.policy.fields import WAVES_MAX, Policy, PolicyInvalid
from muster_controller.core.policy.measures import assigning_s, wave_sizes

DAY_S = 86400.0
ASSIGNING_DAYS = 30
"""As long as one assignment lives."""


def satisfiable(policy: Policy, devices: int, classes: Mapping[str, int]) -> list[str]:
    """Return what an operator should know before `policy` meets these devices; empty when all is well.

    Args:
        devices: How many take part, 0 or more.
        classes: How many of them are of each device class.
    Raises:
        PolicyInvalid: it cannot be satisfied by so many devices, whatever happens.
    """
    if devices == 0:
        said = f"selector {policy.selector!r} names no device" if policy.selector else "there is no device"
        raise PolicyInvalid(f"{said} that could take part; change the selector, or enrol devices first", "selector")
    _reachable(policy, devices)
    sizes = wave_sizes(policy, devices)
    return [*_on_controls(policy, devices, sizes[0], classes), *_on_pace(policy, devices, sizes[0])]


def _reachable(policy: Policy, devices: int) -> None:
    """Refuse gates and conditions that so few devices never get to: a safeguard that cannot act is none."""
    for position, threshold in enumerate(policy.abort_when):
        for name in ("failures", "minimum"):
            value = getattr(threshold, name)
            if isinstance(value, int) and value > devices:
                field = f"abort_when[{position}].{name}"
                raise PolicyInvalid(f"{field} is {value}, but {devices} devices take part: it could never abort", field)
    waves = WAVES_MAX if policy.ramp is not None else len(wave_sizes(policy, devices))
    for position, approval in enumerate(policy.approvals):
        if isinstance(approval.before, int) and approval.before > waves:
            field = f"approvals[{position}].before"
            raise PolicyInvalid(
                f"{field} is {approval.before}, but {devices} devices make {waves} waves:"
                ' it would never be asked for; write "finish", or other waves',
                field,
            )
    _ramp(policy, devices)


def _ramp(policy: Policy, devices: int) -> None:
    """Refuse a ramp whose last wave would have to be larger than it may be, even when all goes well."""
    ramp = policy.ramp
    if ramp is None:
        return
    size, reached = ramp.first, 0
    for _ in range(ramp.waves_max):
        reached = min(reached + size, devices)
        size = min(floor(size * ramp.factor), devices)
    if reached < devices:
        raise PolicyInvalid(
            f"ramp.waves_max is {ramp.waves_max}; so many waves reach {reached} of {devices} devices when all goes"
            " well, and the last would take the rest at once; raise it, or ramp.factor",
            "ramp.waves_max",
        )


def _on_controls(policy: Policy, devices: int, first: int, classes: Mapping[str, int]) -> Iterator[str]:
    objective = f"failures are judged by failure_objective ({policy.failure_objective:g}) alone"
    if policy.controls_per_device == 0:
        return
    if first >= devices:
        yield f"the first wave takes all {devices} devices, so no controls can be held back: {objective}"
        return
    if first < len(classes):
        yield f"the first wave has {first} devices for {len(classes)} device classes; it cannot hold every class"
    if alone := sorted(name for name, count in classes.items() if count == 1):
        yield f"one device only, so without a control of its class: {', '.join(alone)}; there {objective}"
    fit = (devices - first) // first
    if fit < policy.controls_per_device:
        yield (
            f"the first wave has {first} devices and leaves {devices - first}: {fit} controls for each at most,"
            f" not {policy.controls_per_device}; the gate needs more devices to be sure"
        )


def _on_pace(policy: Policy, devices: int, first: int) -> Iterator[str]:
    if policy.rate is not None and (needed := assigning_s(policy.rate, devices)) > ASSIGNING_DAYS * DAY_S:
        yield f"at this rate the last of {devices} devices is assigned after {needed / DAY_S:.0f} days"
    if policy.defer_s_max > 0 and not (policy.consent or policy.maintenance):
        yield "defer_s_max does nothing without consent or maintenance"
    for position, threshold in enumerate(policy.abort_when):
        if threshold.minimum > first:
            yield (
                f"abort_when[{position}] needs {threshold.minimum} outcomes, but the first wave has {first} devices:"
                " it cannot stop the rollout there"
            )
