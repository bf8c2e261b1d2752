"""What Linux counts about the host: throttling, pressure, what the hypervisor took, energy. From `/proc` and `/sys`.

    read ── files, each a few bytes ──▶ Counted; differences to the reading before are within

Unknown is None, never 0: a file that is not there, that only root may read, or that says something else. A folder that
is not there at the first reading is not looked for again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

THROTTLE: Final = "sys/devices/system/cpu"
PI: Final = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_NOW: Final = 0b1111
"""Under-voltage, frequency capped, throttled, soft temperature limit: now. Bits from 16 on say it of the past."""
PRESSURE: Final = "proc/pressure"
STAT: Final = "proc/stat"
RAPL: Final = "sys/class/powercap"
_STEAL: Final = 7  # Of the numbers behind `cpu`: user nice system idle iowait irq softirq steal; guest is in user.
_TEXT_MAX: Final = 4096


@dataclass(frozen=True)
class Counted:
    """One reading."""

    throttled: bool | None = None
    """Whether it was throttled since the reading before, or, on a Raspberry Pi, is now."""
    pressure_cpu_percent: float | None = None
    pressure_memory_percent: float | None = None
    pressure_io_percent: float | None = None
    steal_percent: float | None = None
    energy_j: float | None = None


class HostCounters:
    """One caller at a time. Opens some dozen small files for each reading."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: Where `proc` and `sys` are.
        """
        self._root = root
        self._throttles = tuple(sorted((root / THROTTLE).glob("cpu[0-9]*/thermal_throttle/*_throttle_count")))
        self._throttle_sum: int | None = None
        # A zone with two colons is part of one with one: cores and memory within their package.
        self._zones = tuple(_Zone(path) for path in sorted((root / RAPL).glob("intel-rapl:*")) if _is_package(path))
        self._ticks: tuple[int, int] | None = None  # Stolen, all.

    def read(self) -> Counted:
        """Return how the host is."""
        cpu, memory, io = (self._pressure(name) for name in ("cpu", "memory", "io"))
        return Counted(self._throttled(), cpu, memory, io, self._steal(), self._energy())

    def _throttled(self) -> bool | None:
        text = _text(self._root / PI)
        if text is not None:
            try:
                return bool(int(text, 16) & PI_NOW)
            except ValueError:
                return None
        counts = [_number(path) for path in self._throttles]
        if not counts or None in counts:
            return None
        before, self._throttle_sum = self._throttle_sum, sum(count for count in counts if count is not None)
        return None if before is None else self._throttle_sum > before

    def _pressure(self, name: str) -> float | None:
        """Return avg10 of `some avg10=0.12 avg60=...`."""
        for line in (_text(self._root / PRESSURE / name) or "").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "some" and words[1].startswith("avg10="):
                try:
                    return float(words[1].removeprefix("avg10="))
                except ValueError:
                    return None
        return None

    def _steal(self) -> float | None:
        words = (_text(self._root / STAT) or "").partition("\n")[0].split()
        if len(words) <= _STEAL + 1 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
            return None
        ticks = [int(word) for word in words[1 : _STEAL + 2]]
        before, self._ticks = self._ticks, (ticks[_STEAL], sum(ticks))
        if before is None or self._ticks[1] <= before[1]:
            return None
        return round(100 * max(0, self._ticks[0] - before[0]) / (self._ticks[1] - before[1]), 2)

    def _energy(self) -> float | None:
        joules = [zone.joules() for zone in self._zones]
        known = [one for one in joules if one is not None]
        return round(sum(known), 3) if known and len(known) == len(joules) else None


class _Zone:
    """One counter of energy, which wraps around; its sum does not, if it is read once in a round (a minute or more)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._range_uj = _number(folder / "max_energy_range_uj")
        self._rounds = 0
        self._last_uj = 0

    def joules(self) -> float | None:
        now_uj = _number(self._folder / "energy_uj")  # Root's own since CVE-2020-8694.
        if now_uj is None or self._range_uj is None:
            return None
        if now_uj < self._last_uj:
            self._rounds += 1
        self._last_uj = now_uj
        return (self._rounds * self._range_uj + now_uj) / 1e6


def _is_package(path: Path) -> bool:
    """Whether it is a whole package (`intel-rapl:0`); `psys`, which has the packages within, is none."""
    return path.name.count(":") == 1 and (_text(path / "name") or "").startswith("package")


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_MAX).decode("ascii", "replace").strip()
    except OSError:
        return None
