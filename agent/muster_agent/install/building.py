"""A virtual environment out of verified wheels: made beside the one that runs, without any network, and tried there.

pip gets a folder of files that were hashed as they were written, no index, and hashes for every one of them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from muster_agent.install.places import PROGRAM, Places
from muster_agent.install.versions import environment_of, is_whole, mark_whole
from muster_agent.install.wheel_set import MANIFEST, REQUIREMENTS, UpgradeRefused, WheelSet, copy_verified
from muster_shared.bundle import Variant

PIP_S = 900.0  # A slow card takes minutes to unpack an engine.
CHECK_S = 120.0
MATTERS = ("config", "engine")
"""What a new version must find well; a wrong clock or an old root is not its fault."""


def build(places: Places, wheel_set: WheelSet, variant: Variant, folder: Path) -> Path:
    """Return an environment of that version, made now or before.

    Raises:
        UpgradeRefused: a file is not the signed one, or pip does not take it; nothing is left.
        OSError: the disk refuses.
    """
    environment = environment_of(places, wheel_set.version)
    if is_whole(environment) and (environment.parent / MANIFEST).read_bytes() == wheel_set.raw:
        return environment
    shutil.rmtree(environment.parent, ignore_errors=True)  # Of an upgrade that was killed.
    environment.parent.mkdir(mode=0o755, parents=True)
    try:
        with tempfile.TemporaryDirectory(dir=environment.parent, prefix="wheels-") as wheels:
            copy_verified(wheel_set, variant, folder, Path(wheels))
            _run([sys.executable, "-m", "venv", str(environment)], "no environment can be made")
            pip = [str(environment / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
            pip += ["--no-index", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--find-links", wheels]
            _run([*pip, "--requirement", str(Path(wheels, REQUIREMENTS))], "pip does not install it")
        _open_to_all(environment.parent)
        (environment.parent / MANIFEST).write_bytes(wheel_set.raw)
        try_out(environment, wheel_set.version, places.config)
        mark_whole(environment)
    except BaseException:
        shutil.rmtree(environment.parent, ignore_errors=True)
        raise
    return environment


def try_out(environment: Path, version: str, config: Path) -> None:
    """Ask the new program for its version, and let its doctor look at what it needs. Raises UpgradeRefused."""
    said = _run([str(environment / PROGRAM), "--version"], "the new version does not start").stdout.split()
    if said[-1:] != [version]:
        raise UpgradeRefused(f"the wheels are of {' '.join(said)}, and not of {version}; publish a corrected release")
    command = [str(environment / PROGRAM), "doctor", "--offline", "--json", "--config", str(config)]
    report = _run(command, "its doctor falls over", good=(0, 1)).stdout
    try:
        checks = json.loads(report)["checks"]
        wrong = [f"{check['check']}: {check['said']}" for check in checks if check["verdict"] == "fail"]
    except (ValueError, LookupError, TypeError) as error:
        raise UpgradeRefused(f"the doctor of the new version says nothing: {error}") from error
    wrong = [line for line in wrong if line.partition(":")[0] in MATTERS]
    if wrong:
        raise UpgradeRefused(f"the new version does not fit here: {'; '.join(wrong)}")


def _run(command: list[str], problem: str, good: tuple[int, ...] = (0,)) -> "subprocess.CompletedProcess[str]":
    # Settings of the caller's pip and Python must not lead elsewhere than to the wheels.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1"}
    seconds = PIP_S if "pip" in command or "venv" in command else CHECK_S
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            umask=0o022,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpgradeRefused(f"{problem}: {error}") from error
    if done.returncode not in good:
        said = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise UpgradeRefused(f"{problem} ({done.returncode}): {said}")
    return done


def _open_to_all(folder: Path) -> None:
    """The service's own user reads what root installs."""
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
