"""`[metrics]` of `agent.toml`: what leaves the device anonymously, to whom, and what is kept for its owner alone.

[metrics]
enabled = true
tell_drift = false
outliers = {count = 64, recipient = "<base64, from `muster-agent outliers keygen`>"}
"""

import base64
import binascii

import msgspec

from muster_agent.core.periods import LATE_S, SPREAD_S

OUTLIERS_MAX = 4096
MIB_MAX = 1024
SPEED_MAX = 600.0
SINCE_MAX = 1e11
KEY_BYTES = 32


class OutliersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ring of inputs that look unlike the reference, encrypted to somebody who can come here and fetch them."""

    recipient: str
    """The X25519 public key, base64 of 32 bytes: the agent can write what it cannot read."""
    count: int = 64
    """Of entries; the oldest give way."""
    mib: int = 64
    """Of the disk, for all of them."""

    @property
    def public_key(self) -> bytes:
        """Only of a checked configuration."""
        return _key(self.recipient)


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metrics]`."""

    enabled: bool = True
    """False: nothing is counted for windows, and none are sent. Operational counts in the twin stay."""
    mixer: str = ""
    """The id of the mixer's key to seal to; empty: the first of those that the offline keys vouch for."""
    tell_drift: bool = False
    """Whether the device says of itself, by name, that its inputs drift."""
    spread_s: float = SPREAD_S
    """Within which time after its hour a window leaves."""
    clock_speed: float = 1.0
    """For labs: an hour of the metrics passes in 3600 / clock_speed seconds. Mixer and devices need the same."""
    clock_since: float = 0.0
    """For labs with another speed than 1: the moment from which it passes so, Unix seconds; the same for all."""
    outliers: OutliersConfig | None = None


def problem(config: MetricsConfig) -> str | None:
    """Return what is wrong with `config`, the first thing, by field."""
    if config.mixer and not (len(config.mixer) == 16 and set(config.mixer) <= set("0123456789abcdef")):
        return f"metrics.mixer: {config.mixer[:80]!r} is no id of a key: 16 hex digits, as `muster mixer` shows them"
    wrong = _range("clock_speed", config.clock_speed, 1.0, SPEED_MAX)
    if wrong is not None:
        return wrong
    ring = config.outliers
    if ring is not None:
        try:
            _key(ring.recipient)
        except ValueError:
            return (
                "metrics.outliers.recipient: not the base64 of 32 bytes; `muster-agent outliers keygen` prints the line"
            )
    if config.clock_speed != 1.0 and not config.clock_since > 0.0:
        return "metrics.clock_since: a lab's clock_speed needs it, the same Unix seconds for mixer and devices"
    return (
        _range("spread_s", config.spread_s, 0.0, LATE_S * 0.75)
        or _range("clock_since", config.clock_since, 0.0, SINCE_MAX)
        or (None if ring is None else _range("outliers.count", ring.count, 1, OUTLIERS_MAX))
        or (None if ring is None else _range("outliers.mib", ring.mib, 1, MIB_MAX))
    )


def _key(text: str) -> bytes:
    """Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(text) from error
    if len(raw) != KEY_BYTES:
        raise ValueError(text)
    return raw


def _range(field: str, value: float, least: float, most: float) -> str | None:
    if least <= value <= most:  # False for a NaN, which TOML can say.
        return None
    return f"metrics.{field}: {value:g} is not from {least:g} to {most:g}"
