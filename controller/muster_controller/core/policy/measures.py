"""What a policy comes to in numbers: wave sizes, devices a minute, devices under way, windows of the week.

Plain arithmetic on a policy that `check` has passed; nothing here refuses.
"""

import re

from muster_controller.core.policy.fields import Maintenance, Policy, Rate
from muster_shared.assignment import DAY_MINUTES, MaintenanceWindow

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PERCENT = re.compile(r"(100(?:\.0{1,6})?|[1-9]?[0-9](?:\.[0-9]{1,6})?)%")
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_WEEK = 7 * DAY_MINUTES
PER_MINUTE_MAX = 1e9
"""No fleet is assigned faster than this; it keeps an exponential rate finite."""


def is_percent(text: str) -> bool:
    """Return whether `text` is a share such as "25%" or "0.5%", above 0 and at most 100."""
    return _PERCENT.fullmatch(text) is not None and float(text[:-1]) > 0


def share_of(share: int | str, devices: int) -> int:
    """Return a count as it is, and a share of `devices` ("25%") rounded, at least 1."""
    return share if isinstance(share, int) else max(1, round(float(share[:-1]) * devices / 100))


def wave_sizes(policy: Policy, devices: int) -> tuple[int, ...]:
    """Return the sizes of fixed waves for `devices` devices (at least 1); they add up to it.

    A ramp plans from evidence: of it only the first wave is known, and the rest stands as one.
    """
    sizes: list[int] = []
    left = devices
    for wave in policy.waves if policy.ramp is None else (policy.ramp.first,):
        if left <= 0:
            break
        sizes.append(min(share_of(wave, devices), left))
        left -= sizes[-1]
    if left > 0:
        sizes.append(left)
    return tuple(sizes)


def waves_possible(policy: Policy) -> int:
    """Return how many waves there are at most, whatever the size of the fleet."""
    if policy.ramp is not None:
        return policy.ramp.waves_max
    percent = 0.0
    for position, wave in enumerate(policy.waves, 1):
        percent += float(wave[:-1]) if isinstance(wave, str) else 0.0
        if percent >= 100:
            return position
    return len(policy.waves) + 1


def per_minute(rate: Rate, assigned: int) -> float:
    """Return how many devices a minute may be assigned once `assigned` are."""
    limit = PER_MINUTE_MAX if rate.per_minute_max is None else rate.per_minute_max
    try:
        return float(min(rate.per_minute * rate.factor ** (assigned // rate.every), limit))
    except OverflowError:
        return limit


def assigning_s(rate: Rate, devices: int) -> float:
    """Return how many seconds it takes at least to assign `devices` devices at `rate`."""
    seconds, assigned = 0.0, 0
    while assigned < devices:
        now = per_minute(rate, assigned)
        ends = rate.factor == 1.0 or now >= PER_MINUTE_MAX or now == rate.per_minute_max
        step = devices - assigned if ends else min(rate.every - assigned % rate.every, devices - assigned)
        seconds += 60.0 * step / now
        assigned += step
    return seconds


def in_flight_max(policy: Policy, members: int) -> int | None:
    """Return how many of `members` devices may be under way at once; None: all of them."""
    return None if policy.concurrency is None else share_of(policy.concurrency, members)


def weekdays(text: str) -> tuple[int, ...] | None:
    """Return the days that `text` names ("mon-fri", "sat,sun"; Monday is 0), sorted; None when it names none."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
            return None
        begin = WEEKDAYS.index(first)
        length = (WEEKDAYS.index(last) - begin) % 7 if dash else 0
        found.update((begin + day) % 7 for day in range(length + 1))
    return tuple(sorted(found))


def minute_of_day(text: str) -> int | None:
    """Return the minute that "HH:MM" names, 0..1440; None when it names none."""
    if not _TIME.fullmatch(text):
        return None
    return int(text[:2]) * 60 + int(text[3:])


def window(maintenance: Maintenance) -> MaintenanceWindow:
    """Return the window as it travels to devices."""
    days, start, end = weekdays(maintenance.days), minute_of_day(maintenance.start), minute_of_day(maintenance.end)
    assert days is not None, "check() lets no other days through"
    assert start is not None, "check() lets no other times through"
    assert end is not None, "check() lets no other times through"
    return MaintenanceWindow(days=days, start_minute=start, minutes=end - start + (DAY_MINUTES if end <= start else 0))


def windows(policy: Policy) -> tuple[MaintenanceWindow, ...]:
    """Return the maintenance windows as they travel to devices; none: at any time."""
    return tuple(window(maintenance) for maintenance in policy.maintenance)


def longest_wait_s(policy: Policy) -> float:
    """Return the seconds that a device must be let wait so that, having just missed a window, it has all of the next.

    A day for daily windows, a week for weekly ones; 0 without windows, and where one is always open.
    """
    opens: dict[int, int] = {}
    for each in windows(policy):
        for day in each.days:
            begin = day * DAY_MINUTES + each.start_minute
            opens[begin] = max(opens.get(begin, 0), each.minutes)
    longest = 0
    for begin, minutes in opens.items():
        since = [(begin - other) % _WEEK or _WEEK for other in opens]
        closed = min(past - length for past, length in zip(since, opens.values(), strict=True))
        if closed > 0:  # Otherwise it begins while another is open.
            longest = max(longest, closed + minutes)
    return 60.0 * longest
