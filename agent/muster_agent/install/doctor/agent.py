"""The configuration, the engines, and the agent that should be running."""

import subprocess
import sys
from pathlib import Path

from muster_agent.config import AgentConfig
from muster_agent.engines import registry
from muster_agent.install.doctor.finding import Finding, fail, ok, warn
from muster_agent.install.health import Health
from muster_agent.install.places import Places

ENGINE_S = 25.0


def judge_agent(health: Health, is_ready: bool, places: Places | None) -> Finding:
    """Return the finding for an agent that was looked at."""
    name = "agent"
    if not health.is_up:
        how = {"systemd": "systemctl start muster-agent", "own": "muster-agent supervise --detach"}
        start = how.get(places.supervisor if places is not None else "none", "muster-agent run")
        log = "" if places is None else f"; its log: {_log_of(places)}"
        return fail(name, f"it does not answer ({health.problem})", f"start it: `{start}`{log}")
    serves = f"serves {', '.join(health.serving)}" if health.serving else "serves nothing"
    said = f"version {health.version} {serves}, {'online' if health.is_online else 'not connected to the broker'}"
    if health.problem:
        return warn(name, f"{said}; last error: {health.problem}", "see `muster-agent status`")
    if health.assigned and not is_ready:
        return warn(name, f"{said}, not ready: {', '.join(health.assigned)}", "see `muster-agent status`")
    if not health.is_online:
        return warn(name, said, "see `broker` here")
    if not health.assigned:
        return ok(name, f"{said}: no release is assigned to this device")
    return ok(name, said)


def interrupted_upgrade() -> Finding:
    """Return the finding for an `upgrade.json` that is there."""
    said = "one is under way, or was interrupted"
    return warn("upgrade", said, "unless one runs now: `muster-agent upgrade --recover` finishes or undoes it")


def check_config(path: Path, config: AgentConfig) -> Finding:
    return ok("config", f"{path}: device {config.device} of fleet {config.fleet}, data in {config.data_dir}")


def check_engines(wanted: tuple[str, ...]) -> Finding:
    """Let each engine load and run a graph of one addition, in a process of its own."""
    name = "engine"
    runtimes = [runtime for runtime in registry.available() if runtime in wanted]
    if not runtimes:
        todo = "install one into the agent's environment: muster-agent[onnxruntime] or muster-agent[openvino]"
        return fail(name, "none is installed", todo)
    good: list[str] = []
    bad: list[str] = []
    for runtime in runtimes:
        command = [sys.executable, "-m", "muster_agent.install.doctor.engine_probe", runtime]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_S, check=False)
            said = (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]
            said = said or f"it ended with {done.returncode}"
            (good if done.returncode == 0 else bad).append(f"{runtime}: {said}")
        except (OSError, subprocess.TimeoutExpired):
            bad.append(f"{runtime}: no answer within {ENGINE_S:g} s")
    todo = "install that engine anew, for this processor, or leave it out of `runtimes`"
    if bad:
        return (warn if good else fail)(name, "; ".join((*bad, *good)), todo)
    return ok(name, "; ".join(good))


def _log_of(places: Places) -> str:
    if places.supervisor == "systemd":
        return "journalctl -u muster-agent" if not places.is_user else "journalctl --user -u muster-agent"
    return str(places.supervisor_dir / "agent.log")
