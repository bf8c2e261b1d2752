"""Moments and lengths of time as people type them. Pure: the present is given."""

import re
from datetime import UTC, datetime

from muster_controller.policy_document.units import seconds
from muster_shared.errors import MusterError

_AGO = re.compile(r"(?P<length>.+?)\s+ago")


class TimeInvalid(MusterError):
    """Text that is no time."""


def moment(text: str, now: float) -> float:
    """Return the Unix seconds of "now", "90m ago", "2026-11-22", "2026-11-22T11:20" (local), or with a zone.

    Raises:
        TimeInvalid: it is none of these.
    """
    said = text.strip()
    if said == "now":
        return now
    if match := _AGO.fullmatch(said):
        return max(0.0, now - length(match["length"]))
    try:
        found = datetime.fromisoformat(said)
        return (found if found.tzinfo else found.astimezone()).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise TimeInvalid(f'{text!r} is no time; write "now", "1h ago" or "2026-11-22T11:20"')


def length(text: str) -> float:
    """Return the seconds of "90s", "30m", "2h" or "7d". Raises TimeInvalid."""
    found = seconds(text.strip().replace(" ", ""))
    if found is None or found <= 0:
        raise TimeInvalid(f'{text!r} is no length of time; write "90s", "30m", "2h" or "7d"')
    return found


def stamp(at: float) -> str:
    """Return a moment for a table: "11-22 11:20:05", UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%m-%d %H:%M:%S")
