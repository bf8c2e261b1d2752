"""Who keeps the agent running: systemd, our own supervisor, or nobody. Starting, stopping and removing it there.

What stands in the unit is `unit`'s. Every call of a foreign program has a deadline.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, assert_never

from muster_agent.install import supervisor
from muster_agent.install.places import UNIT, InstallError, Places, SupervisorKind
from muster_agent.install.unit import STATE, render
from muster_agent.io import durable

SYSTEMCTL_S = 120.0
STOP_S = 40.0
_LOOK_S = 0.05


class Service(Protocol):
    """Every method raises InstallError; each may be called twice."""

    kind: SupervisorKind

    def put(self) -> list[str]:
        """Write what it needs; return what was changed, for people."""
        ...

    def start(self) -> None:
        """Start the agent if it does not run."""
        ...

    def restart(self) -> None:
        """Let the agent start anew, from the environment that is current now."""
        ...

    def stop(self) -> None: ...

    def remove(self) -> list[str]:
        """Stop it, and remove what `put` wrote; return what was removed."""
        ...

    def hint(self) -> str:
        """Return what somebody still has to do, so that it comes back after a reboot; empty: nothing."""
        ...


def choose(wanted: str, *, is_user: bool, environment: Mapping[str, str]) -> SupervisorKind:
    """Return who is to keep the agent running here.

    Raises:
        InstallError: systemd is wanted, and it does not run here.
    """
    runs = _systemd_runs(is_user, environment)
    match wanted:
        case "auto":
            return "systemd" if runs else "own"
        case "systemd" if not runs:
            raise InstallError("systemd does not run here; leave --supervisor away, or say --supervisor own")
        case "systemd" | "own" | "none":
            return wanted
        case _:
            raise InstallError(f"{wanted!r} is no supervisor; there are systemd, own and none")


def service_of(places: Places, systemctl: str = "systemctl") -> Service:
    match places.supervisor:
        case "systemd":
            return Systemd(places, systemctl)
        case "own":
            return OwnSupervisor(places)
        case "none":
            return Nobody(places)
        case _:
            assert_never(places.supervisor)


class Systemd:
    kind: SupervisorKind = "systemd"

    def __init__(self, places: Places, systemctl: str = "systemctl") -> None:
        self._places = places
        self._command = [systemctl, *(["--user"] if places.is_user else [])]

    def put(self) -> list[str]:
        text = render(self._places, owner=_owner(self._places)).encode()
        path = self._places.unit
        changed = []
        if not path.exists() or path.read_bytes() != text:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                durable.replace(path, text)
            except OSError as error:
                raise InstallError(
                    f"{path} cannot be written ({error.strerror}); run this as root, or with --user"
                ) from error
            changed.append(f"wrote {path}")
        self._ask("daemon-reload")
        self._ask("enable", UNIT)
        return changed

    def start(self) -> None:
        self._ask("start", UNIT)

    def restart(self) -> None:
        self._ask("restart", UNIT)

    def stop(self) -> None:
        self._ask("stop", UNIT)

    def remove(self) -> list[str]:
        if not self._places.unit.exists():
            return []
        self._ask("disable", "--now", UNIT)
        self._places.unit.unlink(missing_ok=True)
        self._ask("daemon-reload")
        return [f"removed {self._places.unit}"]

    def hint(self) -> str:
        return "let it run while nobody is logged in: loginctl enable-linger" if self._places.is_user else ""

    def _ask(self, *words: str) -> None:
        try:
            done = subprocess.run(
                [*self._command, *words], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallError(f"`systemctl {' '.join(words)}` could not be run ({error})") from error
        if done.returncode != 0:
            said = done.stderr.strip().replace("\n", "; ")[:500]
            raise InstallError(f"`systemctl {' '.join(words)}` failed ({said}); see `journalctl -u {UNIT}`")


class OwnSupervisor:
    kind: SupervisorKind = "own"

    def __init__(self, places: Places) -> None:
        self._places = places
        self.command = (str(places.program), "supervise", "--config", str(places.config))

    def put(self) -> list[str]:
        return []

    def start(self) -> None:
        if self._pid() is not None:
            return
        try:
            supervisor.detach(self.command)
        except OSError as error:
            raise InstallError(f"{self.command[0]} does not start ({error.strerror}); install it again") from error

    def restart(self) -> None:
        pid = self._pid()
        if pid is None:
            self.start()
        else:
            self._tell(pid, signal.SIGHUP)

    def stop(self) -> None:
        pid = self._pid()
        if pid is None:
            return
        self._tell(pid, signal.SIGTERM)
        _until(lambda: self._pid() is None, STOP_S, f"the supervisor (process {pid}) does not end; kill it")

    def remove(self) -> list[str]:
        was_running = self._pid() is not None
        self.stop()
        folder = self._places.supervisor_dir
        for name in (supervisor.PID_FILE, supervisor.LOG_FILE, f"{supervisor.LOG_FILE}.1"):
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()
        return ["stopped the supervisor"] if was_running else []

    def hint(self) -> str:
        words = " ".join(self.command)
        return f"let it come back after a reboot, by cron: @reboot {words} --detach (OpenRC, runit: run {words})"

    def _pid(self) -> int | None:
        return supervisor.running_pid(self._places.supervisor_dir)

    def _tell(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise InstallError(f"the supervisor (process {pid}) is of another user; run this as that one") from error


class Nobody:
    kind: SupervisorKind = "none"

    def __init__(self, places: Places) -> None:
        self._places = places

    def put(self) -> list[str]:
        return []

    def start(self) -> None:
        return

    def restart(self) -> None:
        return

    def stop(self) -> None:
        return

    def remove(self) -> list[str]:
        return []

    def hint(self) -> str:
        return f"start the agent: {self._places.program} run --config {self._places.config}"


def _systemd_runs(is_user: bool, environment: Mapping[str, str]) -> bool:
    if not is_user:
        return Path("/run/systemd/system").is_dir()
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    return bool(runtime) and Path(runtime, "systemd/private").exists()


def _owner(places: Places) -> str:
    """Return who runs a service whose data folder is where systemd does not look after it."""
    if places.is_user or places.data_dir.parent == STATE:
        return ""
    try:
        return places.data_dir.owner()
    except (OSError, KeyError) as error:
        raise InstallError(
            f"the owner of {places.data_dir} cannot be found ({error}); make the folder first"
        ) from error


def _until(holds: Callable[[], bool], seconds: float, problem: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise InstallError(problem)
        time.sleep(_LOOK_S)
