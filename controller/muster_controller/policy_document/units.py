"""Which fields are times or shares, and how people write those: "90s", "2h", "90%"."""

import re

DURATION_PATTERN = r"^([0-9]+(\.[0-9]+)?(w|d|h|m|s))+$"
SHARE_PATTERN = r"^[0-9]+(\.[0-9]+)?%$"
COUNT_SHARE_PATTERN = r"^(100(\.0{1,6})?|[1-9]?[0-9](\.[0-9]{1,6})?)%$"
SHARES = frozenset(
    {
        "success_required",
        "alpha",
        "failure_objective",
        "disagreement_objective",
        "latency_tolerance",
        "trial.share",
        "trial.disagreement_max",
    }
)
"""Fields that are 0..1, by path."""
COUNTS_OR_SHARES = ("concurrency", "abort_when[].failures")
_UNIT_S = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([wdhms])")
TEXT_MAX = 40


def is_duration(path: str) -> bool:
    """Return whether the field at `path` is a time in seconds."""
    name = path.rpartition(".")[2]
    return name.endswith(("_s", "_s_max")) or name == "seconds_max"


def seconds(text: str) -> float | None:
    """Return the seconds that `text` ("90s", "1h30m") says; None when it says none."""
    if len(text) > TEXT_MAX or not re.fullmatch(DURATION_PATTERN[1:-1], text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


def share(text: str) -> float | None:
    """Return the share that `text` ("90%") says, 0.. ; None when it says none."""
    if len(text) > TEXT_MAX or not re.fullmatch(SHARE_PATTERN[1:-1], text):
        return None
    return float(text[:-1]) / 100


def duration_text(value: float) -> float | str:
    """Return `value` seconds as people write them where that is exact: 7200 -> "2h"."""
    for unit in ("d", "h", "m"):
        if value >= _UNIT_S[unit] and value % _UNIT_S[unit] == 0:
            return f"{value / _UNIT_S[unit]:.0f}{unit}"
    return value
