"""`[consent]` of `agent.toml`: when this device lets a rollout download and take over that asks for its consent.

[consent]
hook = ["/etc/muster-agent/may-update"]
cpu_percent_max = 80
on_battery = false
"""

from pathlib import Path

import msgspec

HOOK_ARGUMENTS_MAX = 32
HOOK_TIMEOUT_S_MAX = 60.0
RETRY_S_MIN, RETRY_S_MAX = 10.0, 3600.0


class ConsentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[consent]`; 0 is no limit. What the device cannot measure never defers."""

    hook: tuple[str, ...] = ()
    """A program and its arguments, run without a shell; the stage, the model and the version are appended."""
    hook_timeout_s: float = 10.0
    busy_requests_per_s: float = 0.0
    """Of all models together; above it the device is busy."""
    cpu_percent_max: float = 0.0
    """Of all processors, the agent's own work included."""
    temperature_c_max: float = 0.0
    on_battery: bool = True
    """Whether it may change while it runs on its battery."""
    metered: Path | None = None
    """While this file exists, the link is metered and nothing is downloaded."""
    retry_s: float = 300.0
    """When to look again."""


def problem(config: ConsentConfig) -> str | None:
    """Return what is wrong with `config`, the first thing, by field."""
    if config.hook and not Path(config.hook[0]).is_absolute():
        return f"consent.hook: {config.hook[0]!r} is not an absolute path"
    if len(config.hook) > HOOK_ARGUMENTS_MAX:
        return f"consent.hook: {len(config.hook)} words; the limit is {HOOK_ARGUMENTS_MAX}"
    if any("\0" in word for word in config.hook):
        return "consent.hook: a word has a zero byte"
    if config.metered is not None and not config.metered.is_absolute():
        return f"consent.metered: {str(config.metered)!r} is not an absolute path"
    return (
        _range("hook_timeout_s", config.hook_timeout_s, 0.1, HOOK_TIMEOUT_S_MAX)
        or _range("busy_requests_per_s", config.busy_requests_per_s, 0.0, 1e9)
        or _range("cpu_percent_max", config.cpu_percent_max, 0.0, 100.0)
        or _range("temperature_c_max", config.temperature_c_max, 0.0, 200.0)
        or _range("retry_s", config.retry_s, RETRY_S_MIN, RETRY_S_MAX)
    )


def _range(field: str, value: float, least: float, most: float) -> str | None:
    if least <= value <= most:  # False for a NaN, which TOML can say.
        return None
    return f"consent.{field}: {value:g} is not from {least:g} to {most:g}"
