"""The rollout policy: what an operator writes, refused when the rollout is created and not when it is too late."""

import re
from typing import Literal

import msgspec

from muster_shared.errors import MusterError

WAVES_MAX = 100
_PERCENT = re.compile(r"(100|[1-9]?\d)(?:\.\d+)?%")


class PolicyInvalid(MusterError):
    """A policy that cannot be evaluated or satisfied; the message names the field."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a release goes out.

    Waves are device counts or shares of the fleet ("25%"), each counted by itself; what is left over is the last wave.
    """

    waves: tuple[int | str, ...] = (5, "25%")
    alpha: float = 0.05
    """The chance of a false abort over the whole life of the rollout."""
    failure_objective: float = 0.02
    """The share of bad outcomes (0..1) that is accepted where there are no controls to compare with."""
    tolerance: float = 1.0
    """The relative worsening against controls that is accepted."""
    success_required: float = 0.9
    """The share of a wave (0..1) that must do well before the next begins."""
    controls_per_device: int = 10
    window_s: float = 300.0
    window_max_s: float = 900.0
    requests_min: int = 20
    deadline_s: float = 3600.0
    """From assignment to outcome; a device that is silent until then counts as bad."""
    soak_s: float = 0.0
    """How long a wave that passed waits before the next."""
    on_abort: Literal["roll_back", "stop"] = "roll_back"
    selector: dict[str, str] = {}
    """Labels that a device must have to take part."""


def parse_policy(raw: bytes | str) -> Policy:
    """Return the policy in `raw` (JSON). Raises PolicyInvalid."""
    try:
        policy = msgspec.json.decode(raw, type=Policy)
    except msgspec.MsgspecError as error:
        raise PolicyInvalid(f"the policy does not parse: {error}") from error
    check(policy)
    return policy


def check(policy: Policy) -> None:
    """Raise PolicyInvalid when `policy` cannot be evaluated or satisfied."""
    for field, value, low, high in (
        ("alpha", policy.alpha, 1e-6, 0.5),
        ("failure_objective", policy.failure_objective, 1e-6, 0.5),
        ("tolerance", policy.tolerance, 1.0, 10.0),
        ("success_required", policy.success_required, 0.0, 1.0),
        ("controls_per_device", policy.controls_per_device, 0, 100),
        ("window_s", policy.window_s, 0.1, 30 * 86400),
        ("window_max_s", policy.window_max_s, policy.window_s, 60 * 86400),
        ("requests_min", policy.requests_min, 0, 10**9),
        ("deadline_s", policy.deadline_s, 1.0, 90 * 86400),
        ("soak_s", policy.soak_s, 0.0, 90 * 86400),
    ):
        if not low <= value <= high:
            raise PolicyInvalid(f"{field} is {value:g}; it must be from {low:g} to {high:g}")
    if policy.deadline_s <= policy.window_max_s:
        raise PolicyInvalid(
            f"deadline_s ({policy.deadline_s:g}) must be longer than window_max_s ({policy.window_max_s:g}):"
            " a device needs time to fetch before it is measured"
        )
    if len(policy.waves) > WAVES_MAX:
        raise PolicyInvalid(f"there are {len(policy.waves)} waves; the limit is {WAVES_MAX}")
    for wave in policy.waves:
        if isinstance(wave, str) and not (_PERCENT.fullmatch(wave) and float(wave[:-1]) > 0):
            raise PolicyInvalid(f'a wave is a number of devices or a share such as "25%", not {wave!r}')
        if isinstance(wave, int) and wave < 1:
            raise PolicyInvalid(f"a wave has at least one device, not {wave}")


def wave_sizes(policy: Policy, devices: int) -> tuple[int, ...]:
    """Return the sizes of the waves for `devices` devices (at least 1); they add up to it."""
    sizes: list[int] = []
    left = devices
    for wave in policy.waves:
        size = wave if isinstance(wave, int) else max(1, round(float(wave[:-1]) * devices / 100))
        if left <= 0:
            break
        sizes.append(min(size, left))
        left -= sizes[-1]
    if left > 0:
        sizes.append(left)
    return tuple(sizes)
