"""The device's local time, by which its maintenance windows are meant: configured, or the host's.

    timezone = "Europe/Berlin"      an IANA name: summer time comes and goes by itself
    timezone = "+05:30"             an offset, the same all year
    (nothing)                       what /etc/localtime links to, else the host's present offset

A name is right on both sides of a change to summer time because every look asks anew what o'clock it is.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

LOCALTIME = Path("/etc/localtime")
_OFFSET = re.compile(r"([+-])(0[0-9]|1[0-4]):([0-5][0-9])")


@dataclass(frozen=True)
class LocalTime:
    """`zone` None: the host's own, whatever it is at the time."""

    name: str | None
    zone: tzinfo | None

    def at(self, now: float) -> tuple[int, int]:
        """Return the weekday (Monday is 0) and the minute of the day (0..1439) at Unix seconds `now`."""
        there = datetime.fromtimestamp(now, UTC).astimezone(self.zone)
        return there.weekday(), there.hour * 60 + there.minute


def local_time(configured: str | None, now: Callable[[], float], link: Path = LOCALTIME) -> LocalTime:
    """Return the local time of this device.

    Raises:
        ValueError: `configured` is neither an offset nor a name that this host knows.
    """
    if configured is not None:
        return LocalTime(configured, zone_of(configured))
    name = _linked(link)
    if name is not None:
        try:
            return LocalTime(name, zone_of(name))
        except ValueError:
            pass  # A link to somewhere of its own; the host knows all the same what o'clock it is.
    offset = datetime.fromtimestamp(now(), UTC).astimezone().utcoffset()
    return LocalTime(None if offset is None else _written(offset), None)


def zone_of(name: str) -> tzinfo:
    """Return the zone of an IANA name or an offset. Raises ValueError."""
    offset = _OFFSET.fullmatch(name)
    if offset is not None:
        sign, hours, minutes = offset.groups()
        distance = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-distance if sign == "-" else distance)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"{name[:80]!r} is neither a time zone that this host knows nor an offset like +02:00"
        ) from error


def _linked(link: Path) -> str | None:
    """Return the IANA name that `link` stands for: the part behind `zoneinfo/`."""
    try:
        target = os.readlink(link)
    except OSError:
        return None
    _, folder, name = target.partition("zoneinfo/")
    return (name.removeprefix("posix/").removeprefix("right/") or None) if folder else None


def _written(offset: timedelta) -> str:
    minutes = int(offset.total_seconds()) // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
