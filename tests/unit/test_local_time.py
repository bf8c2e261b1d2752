"""The device's local time: by name, by offset, or as the host has it; right on both sides of a change."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from muster_agent.consent.local_time import LocalTime, local_time, zone_of

SUNDAY, MONDAY = 6, 0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def named(name: str) -> LocalTime:
    return LocalTime(name, zone_of(name))


def test_a_name_follows_summer_time_and_an_offset_does_not() -> None:
    before, after = at("2026-03-29T00:59:00"), at("2026-03-29T01:00:00")

    assert named("Europe/Berlin").at(before) == (SUNDAY, 119)
    assert named("Europe/Berlin").at(after) == (SUNDAY, 180)  # There is no two o'clock in that night.
    assert named("+01:00").at(after) == (SUNDAY, 120)


def test_the_hour_that_comes_twice_is_the_same_time_twice() -> None:
    berlin = named("Europe/Berlin")

    assert berlin.at(at("2026-10-25T00:30:00")) == berlin.at(at("2026-10-25T01:30:00")) == (SUNDAY, 150)


def test_an_offset_changes_the_day_too() -> None:
    assert named("+05:30").at(at("2026-06-07T20:00:00")) == (MONDAY, 90)
    assert named("-02:30").at(at("2026-06-08T01:00:00")) == (SUNDAY, 22 * 60 + 30)


@pytest.mark.parametrize("name", ["Mars/Olympus", "+15:00", "+5:30", "", "../etc/passwd", "/etc/passwd", "Europe"])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        zone_of(name)


def test_the_host_tells_its_zone_by_a_link(tmp_path: Path) -> None:
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Asia/Kolkata")

    found = local_time(None, lambda: 0.0, link)

    assert found.name == "Asia/Kolkata"
    assert found.at(0.0) == (3, 330)


def test_a_host_without_a_link_tells_its_offset(tmp_path: Path) -> None:
    found = local_time(None, lambda: at("2026-06-07T20:00:00"), tmp_path / "nothing")

    assert found.name is not None
    assert found.name[0] in "+-"
    assert found.zone is None


def test_what_is_configured_wins(tmp_path: Path) -> None:
    assert local_time("+02:00", lambda: 0.0, tmp_path / "nothing") == LocalTime("+02:00", zone_of("+02:00"))
