"""The device's own rules: each looks at one thing, and the first that says later decides. The hook is asked last.

    download   metered link, battery, heat, hook
    activate   requests, processors, battery, heat, hook

It reads sensors when asked and keeps nothing. Limits are named in the reasons, not readings: the same reason has the
same words, so that it is reported once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from muster_agent.consent.config import ConsentConfig
from muster_agent.consent.hook import run_hook
from muster_agent.core.state import Stage


class Sensors(Protocol):
    """What the host tells; None where it does not."""

    def cpu_percent(self) -> float | None:
        """Return how busy the processors are; it may take a second to find out."""
        ...

    def temperature_c(self) -> float | None: ...

    def on_battery(self) -> bool | None: ...


@dataclass(frozen=True)
class Check:
    """What one rule found. `later` is empty when nothing speaks against it."""

    rule: str
    found: str
    later: str = ""
    fault: bool = False


@dataclass(frozen=True)
class Decision:
    checks: tuple[Check, ...]
    retry_s: float

    @property
    def decisive(self) -> Check | None:
        """The rule that says later; None: go on."""
        return next((check for check in self.checks if check.later), None)


class Rules:
    """The rules of one device. Called on any thread, one call at a time; it may take the hook's whole timeout."""

    def __init__(
        self, config: ConsentConfig, sensors: Sensors, requests_per_s: Callable[[], float | None] = lambda: None
    ) -> None:
        """
        Args:
            requests_per_s: Of all models together; None: nobody knows.
        """
        self._config = config
        self._sensors = sensors
        self._requests_per_s = requests_per_s

    def decide(self, stage: Stage, model: str, version: str, *, every: bool = False) -> Decision:
        """Return whether it may go on now.

        Args:
            every: Look at all of them, also after one that says later.
        """
        checks: list[Check] = []
        for check in self._checks(stage, model, version):
            checks.append(check)
            if check.later and not every:
                break
        return Decision(tuple(checks), self._config.retry_s)

    def _checks(self, stage: Stage, model: str, version: str) -> Iterator[Check]:
        config = self._config
        if stage is Stage.DOWNLOAD and config.metered is not None:
            metered = config.metered.exists()
            yield Check("metered", "metered" if metered else "not metered", "the link is metered" if metered else "")
        if stage is Stage.ACTIVATE and config.busy_requests_per_s:
            yield _above("requests", self._requests_per_s(), config.busy_requests_per_s, "requests/s", "busy")
        if stage is Stage.ACTIVATE and config.cpu_percent_max:
            yield _above(
                "cpu", self._sensors.cpu_percent(), config.cpu_percent_max, "% of the processors in use", "busy"
            )
        if config.temperature_c_max:
            yield _above("temperature", self._sensors.temperature_c(), config.temperature_c_max, "°C", "hot")
        if not config.on_battery:
            found = self._sensors.on_battery()
            words = "unknown" if found is None else "on battery" if found else "on mains"
            yield Check("battery", words, "on battery" if found else "")
        if config.hook:
            answer = run_hook((*config.hook, stage.value, model, version), config.hook_timeout_s)
            yield Check("hook", answer.reason or "go on", "" if answer.go_on else answer.reason, answer.fault)


def _above(rule: str, found: float | None, most: float, unit: str, word: str) -> Check:
    if found is None:
        return Check(rule, "unknown")
    later = f"{word}: more than {most:g} {unit}" if found > most else ""
    return Check(rule, f"{found:.1f} {unit}, {most:g} allowed", later)
