"""Words for counts and moments, as the sentences of this package say them. Pure."""

from datetime import UTC, datetime


def devices(count: int) -> str:
    """Return "1 device" or "1,200 devices"."""
    return "1 device" if count == 1 else f"{count:,} devices"


def at_time(at: float, now: float) -> str:
    """Return a moment as "11:20 UTC (in 5 min)", with the day where it is not the same."""
    try:
        moment, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"
    form = "%H:%M UTC" if moment.date() == today.date() else "%Y-%m-%d %H:%M UTC"
    return f"{moment.strftime(form)} ({distance(at - now)})"


def distance(seconds: float) -> str:
    """Return "in 5 min" or "5 min ago"."""
    length = abs(seconds)
    words = f"{length / 86_400:.0f} d"
    for limit, size, unit in ((129_600.0, 3600, "h"), (5400.0, 60, "min"), (90.0, 1, "s")):
        if length < limit:
            words = f"{length / size:.0f} {unit}"
    return f"in {words}" if seconds >= 0 else f"{words} ago"
