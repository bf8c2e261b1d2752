"""Processors, heat and battery, as psutil tells them. Unknown is None, never 0."""

import psutil

from muster_agent.io.host import read_temperature

CPU_SECONDS = 1.0


class PsutilSensors:
    """`rules.Sensors`. `cpu_percent` takes CPU_SECONDS."""

    def cpu_percent(self) -> float | None:
        try:
            return float(psutil.cpu_percent(CPU_SECONDS))
        except (psutil.Error, OSError, ValueError):
            return None

    def temperature_c(self) -> float | None:
        return read_temperature()

    def on_battery(self) -> bool | None:
        try:
            battery = psutil.sensors_battery()
        except (AttributeError, psutil.Error, OSError, ValueError):
            return None
        plugged = None if battery is None else battery.power_plugged
        return None if plugged is None else not plugged
