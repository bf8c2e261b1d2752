"""Handing the service from one environment to another, and back when the new one does not do as well.

    begin ──▶ restart ──▶ up, of that version, and serves what was served ──▶ settle
                    └──── not within the time ──▶ take back ──▶ restart ──▶ forget

Everything that is to be known stands in `upgrade.json`, so whoever finds it can go on (`prove`), wherever the one
before was killed. A guard is a process that waits for exactly that.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from muster_agent.install import versions
from muster_agent.install.health import Health
from muster_agent.install.places import InstallError, Places
from muster_agent.install.service import Service
from muster_agent.install.versions import Pending

LOOK_S = 0.25
BACK_S = 120.0


class UpgradeFailed(InstallError):
    """The new version did not do; the one before has taken over again."""


def prove(places: Places, service: Service, switch: Pending, look: Callable[[], Health], wait_s: float) -> Health:
    """Restart the service on what `current` is, and keep it only if it does as well as the one before.

    Raises:
        UpgradeFailed: it does not, within `wait_s`; the one before runs again.
        InstallError: the service cannot be restarted.
    """
    health, problem = Health(), "the version before was put back when it did not start"
    if os.path.realpath(places.current) == os.path.realpath(switch.after):
        service.restart()
        health, problem = _wait(places, look, switch, wait_s)
        if not problem:
            versions.settle(places)
            return health
    versions.take_back(places, switch)
    service.restart()
    back = _until(look, lambda health: health.is_up and health.version != switch.version, BACK_S)
    versions.forget(places, switch)
    state = f"{back.version} runs again" if back.is_up else "the version before does not answer either; run doctor"
    raise UpgradeFailed(f"{switch.version} {problem}; {state}")


def shortfall(health: Health, switch: Pending) -> str:
    """Return what the new version lacks; empty: it does as well as the one before."""
    if not health.is_up:
        return f"did not come up ({health.problem})"
    if health.version != switch.version:
        return f"is not what runs: {health.version} does"
    missing = [model for model in switch.serving if model not in health.serving]
    return f"does not serve {', '.join(missing)}" if missing else ""


def guard_command(program: Path, config: Path, wait_s: float) -> tuple[str, ...]:
    """Return the command of a process that finishes what we leave when we are killed.

    Args:
        program: Of an environment that works, by its real path.
    """
    return (str(program), "upgrade", "--recover", "--config", str(config), "--ready-wait", f"{wait_s:g}")


def _wait(places: Places, look: Callable[[], Health], switch: Pending, wait_s: float) -> tuple[Health, str]:
    """Return how the new version does once it does well, was given up by `count_start`, or the time is over."""

    def is_decided(health: Health) -> bool:
        return not shortfall(health, switch) or os.path.realpath(places.current) != os.path.realpath(switch.after)

    health = _until(look, is_decided, wait_s)
    return health, shortfall(health, switch)


def _until(look: Callable[[], Health], holds: Callable[[Health], bool], seconds: float) -> Health:
    deadline = time.monotonic() + seconds
    while True:
        health = look()
        if holds(health) or time.monotonic() > deadline:
            return health
        time.sleep(LOOK_S)
