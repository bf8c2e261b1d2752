"""The agent replaced by wheels that are built from this tree: a good version, a broken one, and kills in between.

Dependencies are not in the wheel set: a wheel with a .pth file lends those of the environment that runs the tests.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest

from harness.fleet_of_one import Works, free_port
from muster_agent.config import read_config
from muster_agent.install import places as where
from muster_agent.install import versions
from muster_agent.install.health import look
from muster_agent.install.places import PROGRAM, Places
from muster_agent.install.service import OwnSupervisor
from muster_agent.install.wheel_set import NAME
from muster_shared.bundle import digest

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with wheels of this tree under other versions: 9.1.0 is good, 9.2.0 ends when it is to run."""
    shelf = tmp_path_factory.mktemp("shelf")
    common = shelf / "common"
    build(ROOT / "shared", common)
    lend(common)
    for version, spoilt in (("9.1.0", False), ("9.2.0", True)):
        source = shelf / f"agent-{version}"
        shutil.copytree(ROOT / "agent", source, ignore=shutil.ignore_patterns("__pycache__"))
        rewrite(source / "pyproject.toml", r'^version = ".*"$', f'version = "{version}"')
        rewrite(source / "muster_agent/__init__.py", r'^__version__ = ".*"$', f'__version__ = "{version}"')
        if spoilt:
            rewrite(source / "muster_agent/daemon.py", r"^    configure_logs\(.*$", '    raise SystemExit("spoilt")')
        wheels = shelf / version / "wheels"
        shutil.copytree(common, wheels)
        build(source, wheels)
        names = {path.name.split("-")[0]: path for path in wheels.glob("*.whl")}
        lines = (
            f"{name}=={path.name.split('-')[1]} --hash=sha256:{digest(path.read_bytes())}\n"
            for name, path in names.items()
        )
        (shelf / version / "requirements.txt").write_text("".join(lines))
    return shelf


def build(source: Path, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(into), str(source)], check=True, timeout=300)


def lend(into: Path) -> None:
    """Write a wheel that puts the test environment's packages behind those of the environment it is installed in."""
    info = "lender-1.0.dist-info"
    files = {
        "lender.pth": f"{Path(numpy.__file__).parents[1]}\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: lender\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(into / "lender-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def rewrite(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, path
    path.write_text(changed)


class Device:
    """An installed agent with its supervisor; its broker is away."""

    def __init__(self, folder: Path, shelf: Path) -> None:
        self.folder, self.shelf = folder, shelf
        self.works = Works.open(folder / "works", [NAME])
        self.http_port = free_port()
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("MUSTER_")}
        self.places = Places(
            is_user=True,
            config=folder / "etc" / "agent.toml",
            data_dir=folder / "data",
            program_dir=folder / "program",
            unit=folder / "none.service",
            supervisor="own",
        )
        where.save(self.places)
        (folder / "root.json").write_text(
            next(files.files["1.root.json"] for files in self.works.repository.trust_messages() if files.role == "root")
        )
        self.places.config.write_text(
            f'fleet = "test"\ndevice = "edge-1"\ndevice_class = "x86-cpu"\ndata_dir = "{self.places.data_dir}"\n'
            f'broker_url = "mqtt://127.0.0.1:{free_port()}"\nbootstrap_root = "{folder / "root.json"}"\n'
            f'runtimes = ["onnxruntime"]\n[http]\nlisten = "127.0.0.1:{self.http_port}"\n'
        )
        self.places.data_dir.mkdir()
        self.places.program_dir.mkdir()
        where.point(self.places.current, Path(sys.prefix))
        self.service = OwnSupervisor(self.places)

    def runs(self) -> str:
        return look(read_config(self.places.config, {}), None).version

    def release(self, version: str, number: int, *, signed: bool = True) -> Path:
        folder = self.folder / "releases" / version
        shutil.copytree(self.shelf / version, folder)
        command = [sys.executable, "-m", "muster_agent.install.wheel_set", str(folder), version, str(number)]
        subprocess.run(command, check=True, timeout=60)
        self.works.publish(folder, signed=signed)
        for files in self.works.repository.trust_messages():
            for name, text in files.files.items():
                path = folder / "metadata" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return folder

    def upgrade(self, *arguments: str) -> "subprocess.Popen[str]":
        # By the program of the installation: what runs an upgrade is the version that is there.
        command = [str(self.places.current.resolve() / PROGRAM), "upgrade", "--config", str(self.places.config)]
        return subprocess.Popen(
            [*command, "--ready-wait", "60", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )

    def upgraded(self, *arguments: str) -> tuple[int, str]:
        process = self.upgrade(*arguments)
        said, _ = process.communicate(timeout=280)
        return process.returncode, said


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def device(tmp_path: Path, shelf: Path) -> Iterator[Device]:
    device = Device(tmp_path, shelf)
    try:
        yield device
    finally:
        device.service.stop()


def test_a_signed_version_takes_over_a_broken_one_falls_back_and_the_first_comes_back(device: Device) -> None:
    device.service.start()
    wait_for(lambda: device.runs() != "", "the agent is up")
    first = device.runs()

    code, said = device.upgraded("--from", str(device.release("9.1.0", 1)))
    good = device.runs()
    broken_code, broken_said = device.upgraded("--from", str(device.release("9.2.0", 2)))
    fallen_back = device.runs()
    back_code, back_said = device.upgraded("--back")

    assert (code, good) == (0, "9.1.0"), said
    assert (broken_code, fallen_back) == (1, "9.1.0"), broken_said
    assert "9.1.0 runs again" in broken_said
    assert not (device.places.program_dir / "versions" / "9.2.0").exists()
    assert (back_code, device.runs()) == (0, first), back_said


def test_an_upgrade_that_is_killed_leaves_an_agent_that_works(device: Device) -> None:
    device.service.start()
    wait_for(lambda: device.runs() != "", "the agent is up")
    first = device.runs()
    folder = device.release("9.2.0", 1)
    half = device.places.program_dir / "versions" / "9.2.0"

    building = device.upgrade("--from", str(folder))
    wait_for(lambda: (half / "venv" / "bin").exists(), "it builds")
    building.kill()
    building.communicate(timeout=30)
    while_building = device.runs()
    switching = device.upgrade("--from", str(folder))
    wait_for(lambda: (device.places.program_dir / versions.PENDING).exists(), "it switches")
    os.kill(switching.pid, signal.SIGKILL)
    switching.communicate(timeout=30)
    wait_for(lambda: versions.pending(device.places) is None, "the guard has finished it")

    assert while_building == first
    assert device.runs() == first
    assert device.places.current.resolve() == Path(sys.prefix).resolve()


def test_what_nobody_signed_is_not_installed(device: Device) -> None:
    unsigned = device.release("9.1.0", 1, signed=False)
    code, said = device.upgraded("--from", str(unsigned))
    shutil.rmtree(unsigned)
    tampered = device.release("9.1.0", 1)
    wheel = next((tampered / "wheels").glob("muster_agent*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"!")

    tampered_code, tampered_said = device.upgraded("--from", str(tampered))

    assert code == 2
    assert "not among the targets" in said or "signatures do not hold" in said
    assert tampered_code == 2
    assert "not the file that was signed" in tampered_said
    assert not (device.places.program_dir / "versions" / "9.1.0").exists()
