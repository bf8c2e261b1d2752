"""What `/proc` and `/sys` say of the host, from a tree of our own: unknown is None, and counters only rise."""

import os
from pathlib import Path

import pytest

from muster_agent.io.host import PsutilHost
from muster_agent.io.host_counters import PI, PRESSURE, RAPL, STAT, THROTTLE, Counted, HostCounters


def put(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n", encoding="ascii")


def zone(root: Path, number: str, name: str, uj: int, range_uj: int = 1000) -> None:
    for file, content in (("name", name), ("energy_uj", uj), ("max_energy_range_uj", range_uj)):
        put(root, f"{RAPL}/intel-rapl:{number}/{file}", content)


def test_a_host_that_tells_nothing_is_unknown_in_all(tmp_path: Path) -> None:
    assert HostCounters(tmp_path).read() == Counted()


def test_pressure_is_the_share_of_the_last_ten_seconds_in_which_somebody_waited(tmp_path: Path) -> None:
    for name, share in (("cpu", 12.5), ("memory", 0.0)):
        put(
            tmp_path, f"{PRESSURE}/{name}", f"some avg10={share} avg60=1.00 total=7\nfull avg10=9.00 avg60=0.00 total=0"
        )

    found = HostCounters(tmp_path).read()

    assert (found.pressure_cpu_percent, found.pressure_memory_percent) == (12.5, 0.0)
    assert found.pressure_io_percent is None


@pytest.mark.parametrize("text", ["", "some", "some avg10=much", "full avg10=1.0"])
def test_a_pressure_file_of_another_shape_is_unknown(tmp_path: Path, text: str) -> None:
    put(tmp_path, f"{PRESSURE}/cpu", text)

    assert HostCounters(tmp_path).read().pressure_cpu_percent is None


def test_steal_is_the_share_of_the_time_since_the_reading_before(tmp_path: Path) -> None:
    put(tmp_path, STAT, "cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2 3")
    counters = HostCounters(tmp_path)
    first = counters.read()
    put(tmp_path, STAT, "cpu  150 0 60 820 10 0 0 60 99 99\ncpu0 1 2 3")

    second = counters.read()

    assert first.steal_percent is None
    assert second.steal_percent == 20.0  # Of 100 ticks; those of guests are in `user` already.


def test_a_host_that_throttled_since_the_reading_before_says_so(tmp_path: Path) -> None:
    for cpu in (0, 1):
        for what in ("core", "package"):
            put(tmp_path, f"{THROTTLE}/cpu{cpu}/thermal_throttle/{what}_throttle_count", 5)
    counters = HostCounters(tmp_path)

    first, second = counters.read().throttled, counters.read().throttled
    put(tmp_path, f"{THROTTLE}/cpu1/thermal_throttle/core_throttle_count", 6)
    third = counters.read().throttled

    assert (first, second, third) == (None, False, True)


@pytest.mark.parametrize(("bits", "now"), [("50000", False), ("50005", True), ("0", False), ("strange", None)])
def test_a_raspberry_pi_says_what_is_now_beside_what_was(tmp_path: Path, bits: str, now: bool | None) -> None:
    put(tmp_path, PI, bits)

    assert HostCounters(tmp_path).read().throttled is now


def test_energy_is_that_of_all_packages_without_their_parts_and_never_falls(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 900_000, 1_000_000)
    zone(tmp_path, "0:0", "core", 500_000, 1_000_000)
    zone(tmp_path, "1", "package-1", 100_000, 1_000_000)
    zone(tmp_path, "2", "psys", 999_000, 1_000_000)
    counters = HostCounters(tmp_path)
    first = counters.read().energy_j
    zone(tmp_path, "0", "package-0", 50_000, 1_000_000)

    second = counters.read().energy_j

    assert first == pytest.approx(1.0)
    assert second == pytest.approx(1.15)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_that_only_root_may_read_is_unknown(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 900_000)
    (tmp_path / RAPL / "intel-rapl:0" / "energy_uj").chmod(0)

    assert HostCounters(tmp_path).read().energy_j is None


def test_energy_of_one_package_alone_is_not_told_as_all(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0", 900_000)
    zone(tmp_path, "1", "package-1", 100_000)
    (tmp_path / RAPL / "intel-rapl:1" / "energy_uj").unlink()

    assert HostCounters(tmp_path).read().energy_j is None


def test_the_telemetry_of_a_host_has_what_its_files_say(tmp_path: Path) -> None:
    put(tmp_path, f"{PRESSURE}/io", "some avg10=3.25 avg60=0.00 total=0")

    found = PsutilHost(tmp_path, root=tmp_path).telemetry()

    assert found.pressure_io_percent == 3.25
    assert found.energy_j is None
    assert found.throttled is None
    assert found.memory_percent is not None


def test_what_the_link_carried_is_told_in_megabytes_and_unknown_where_nobody_counts(tmp_path: Path) -> None:
    counted = PsutilHost(tmp_path, root=tmp_path, traffic=lambda: (1_500_000, 2_000)).telemetry()
    uncounted = PsutilHost(tmp_path, root=tmp_path).telemetry()

    assert (counted.net_sent_mb, counted.net_received_mb) == (1.5, 0.002)
    assert (uncounted.net_sent_mb, uncounted.net_received_mb) == (None, None)
