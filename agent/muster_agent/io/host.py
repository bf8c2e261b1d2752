"""What this machine is (`detect_hardware`) and how it is doing (`PsutilHost`), as far as it tells.

Unknown stays None, never 0: virtual machines have no temperatures, containers no host view.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from muster_agent.io.host_counters import HostCounters
from muster_shared.messages import Hardware, HostTelemetry

CACHED_S = 1.0
OPENVINO_TIMEOUT_S = 20.0
_MIB = 1024 * 1024
_SENSORS = ("cpu_thermal", "coretemp", "k10temp", "soc_thermal", "acpitz")
# In a process of its own: importing it here would cost 40 MB for the life of the agent.
_ASK_OPENVINO = "import openvino; print('\\n'.join(openvino.Core().available_devices))"

log = structlog.get_logger()


@dataclass(frozen=True)
class HardwareOverrides:
    """What the configuration declares instead of what is detected; None and empty: detect."""

    arch: str | None = None
    accelerators: tuple[str, ...] | None = None
    cpu_count: int | None = None
    memory_mb: int | None = None


def detect_hardware(
    device_class: str, runtimes: Iterable[str], overrides: HardwareOverrides, *, ask_openvino: bool = False
) -> Hardware:
    """Return what this device is.

    Args:
        runtimes: The engines that are installed and enabled.
        ask_openvino: Whether to look for accelerators through OpenVINO, in a process of its own (a second or two).
    """
    enabled = tuple(runtimes)
    accelerators = overrides.accelerators
    if accelerators is None:
        found = _openvino_devices() if ask_openvino and "openvino" in enabled else ()
        accelerators = tuple(dict.fromkeys(("cpu", *found)))
    return Hardware(
        device_class=device_class,
        arch=overrides.arch or platform.machine(),
        accelerators=accelerators,
        cpu_count=overrides.cpu_count or usable_cpus(),
        memory_mb=overrides.memory_mb or psutil.virtual_memory().total // _MIB,
        runtimes=enabled,
    )


def usable_cpus() -> int:
    """Return how many processors this process may run on."""
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class PsutilHost:
    """`ports.Host`. A reading is kept for CACHED_S."""

    def __init__(
        self,
        data_dir: Path,
        monotonic: Callable[[], float] = time.monotonic,
        root: Path = Path("/"),
        traffic: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """
        Args:
            root: Where `proc` and `sys` are.
            traffic: Bytes that the link has sent and received; None: nobody counts them.
        """
        self._traffic = traffic
        self._data_dir = data_dir
        self._counters = HostCounters(root)
        self._monotonic = monotonic
        self._process = psutil.Process()
        self._read_at = -CACHED_S
        self._telemetry = HostTelemetry()
        self._has_sensors = True
        psutil.cpu_percent()  # It measures since the last call; the first has nothing to say.

    def telemetry(self) -> HostTelemetry:
        now = self._monotonic()
        if now - self._read_at >= CACHED_S:
            self._read_at = now
            found = self._counters.read()
            sent, received = (None, None) if self._traffic is None else self._traffic()
            self._telemetry = HostTelemetry(
                cpu_percent=_known(psutil.cpu_percent),
                memory_percent=_known(lambda: psutil.virtual_memory().percent),
                disk_percent=_known(lambda: psutil.disk_usage(str(self._data_dir)).percent),
                temperature_c=self._temperature(),
                agent_rss_mb=_known(lambda: round(self._process.memory_info().rss / _MIB, 1)),
                uptime_s=_known(lambda: round(time.time() - psutil.boot_time(), 0)),
                throttled=found.throttled,
                pressure_cpu_percent=found.pressure_cpu_percent,
                pressure_memory_percent=found.pressure_memory_percent,
                pressure_io_percent=found.pressure_io_percent,
                steal_percent=found.steal_percent,
                battery_percent=_battery(),
                energy_j=found.energy_j,
                net_sent_mb=_mb(sent),
                net_received_mb=_mb(received),
            )
        return self._telemetry

    def _temperature(self) -> float | None:
        if not self._has_sensors:
            return None
        readings = _temperatures()
        self._has_sensors = bool(readings)  # Sensors do not appear later; looking for them walks sysfs.
        return _of_the_processor(readings)


def _battery() -> float | None:
    try:
        found = psutil.sensors_battery()
    except (AttributeError, OSError, ValueError, RuntimeError):
        return None
    return None if found is None else float(found.percent)


def _mb(count: int | None) -> float | None:
    return None if count is None else round(count / 1e6, 3)


def read_temperature() -> float | None:
    """Return the temperature of the processor in °C, as far as the host tells."""
    return _of_the_processor(_temperatures())


def _temperatures() -> Mapping[str, Sequence[float]]:
    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError, ValueError):
        return {}
    return {name: [float(reading.current) for reading in readings] for name, readings in found.items()}


def _of_the_processor(readings: Mapping[str, Sequence[float]]) -> float | None:
    for name in (*_SENSORS, *sorted(readings)):
        for celsius in readings.get(name, ()):
            if celsius > 0:
                return celsius
    return None


def _known(read: Callable[[], float]) -> float | None:
    try:
        return float(read())
    except (psutil.Error, OSError, ValueError, RuntimeError):
        return None


def _openvino_devices() -> tuple[str, ...]:
    """Return what OpenVINO sees, in the words of manifests: `GPU.0` is gpu."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_OPENVINO],
            capture_output=True,
            text=True,
            timeout=OPENVINO_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("openvino_not_asked", error=str(error))
        return ()
    return tuple(sorted({line.partition(".")[0].strip().lower() for line in asked.stdout.splitlines() if line.strip()}))
