"""The families that every program has: `process_*`, from /proc, as Prometheus' own clients name them. Impure."""

import os
import resource
import time

from muster_controller.export.families import Family, Kind, family

_PAGE = os.sysconf("SC_PAGE_SIZE")


def process_families(started_at: float) -> list[Family]:
    """Return what this process uses; where there is no /proc, what can be known without.

    Args:
        started_at: Unix seconds.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime
    virtual, resident = _memory()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = (
        ("process_cpu_seconds_total", Kind.COUNTER, "Processor time, user and system", cpu_s),
        ("process_start_time_seconds", Kind.GAUGE, "When the process started, Unix time", started_at),
        ("process_virtual_memory_bytes", Kind.GAUGE, "Virtual memory", virtual),
        ("process_resident_memory_bytes", Kind.GAUGE, "Resident memory", resident),
        ("process_open_fds", Kind.GAUGE, "Open file descriptors", _descriptors()),
        ("process_max_fds", Kind.GAUGE, "How many there may be", float(limit)),
    )
    return [family(name, kind, text, [(value, {})]) for name, kind, text, value in found]


def started_at() -> float:
    """Return when this process began, Unix seconds; now, where nobody tells."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="ascii") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return time.time()
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _memory() -> tuple[float | None, float | None]:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            virtual, resident, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return None, None
    return float(virtual * _PAGE), float(resident * _PAGE)


def _descriptors() -> float | None:
    try:
        return float(len(os.listdir("/proc/self/fd")) - 1)  # Less the one that lists them.
    except OSError:
        return None
