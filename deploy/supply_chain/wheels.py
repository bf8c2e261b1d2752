"""`make check-wheels`: what a device installs exists as wheels, for both architectures, checked by resolving.

    python deploy/supply_chain/wheels.py UV

For each device distribution with all of its extras, Python 3.11 to 3.13, x86-64 and aarch64 Linux: uv resolves the
locked versions from wheels alone. Nothing is installed. Without the package index it says so and ends with 3.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from closure import OWN, Part, parts_of
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEVICE = ("muster-shared", "muster-agent")
ARCHITECTURES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = "2_28"  # Debian 10, RHEL 8, Ubuntu 20.04 and whatever is newer.
HIGHER = {("openvino", "aarch64"): "2_35"}
"""What an extra needs instead: OpenVINO's wheels for aarch64 begin with Debian 12 and Ubuntu 22.04."""
TIMEOUT_S = 300.0
OFFLINE = 3
_UNREACHABLE = ("Failed to fetch", "dns error", "error sending request", "Network is unreachable", "tcp connect error")


@dataclass(frozen=True)
class Case:
    """One installation to resolve: a distribution with some of its extras, on one kind of device."""

    part: Part
    extras: tuple[str, ...]
    platform: str
    """As uv calls it."""
    python: str

    def __str__(self) -> str:
        return f"{self.part.name}[{','.join(self.extras)}] on {self.platform}, Python {self.python}"


def cases(parts: dict[str, Part]) -> Iterator[Case]:
    """Yield every case: all extras at once, but that those with a floor of their own come by themselves."""
    for name, architecture, python in product(DEVICE, ARCHITECTURES, PYTHONS):
        part = parts[name]
        own = sorted(extra for extra in part.extras if (extra, architecture) in HIGHER)
        rest = tuple(sorted(set(part.extras) - set(own)))
        yield Case(part, rest, f"{architecture}-manylinux_{GLIBC}", python)
        for extra in own:
            yield Case(part, (extra,), f"{architecture}-manylinux_{HIGHER[extra, architecture]}", python)


def requirements(case: Case, parts: dict[str, Part]) -> list[str]:
    """Return what is required of others, ours replaced by what they require."""
    extras = [each for extra in case.extras for each in case.part.extras[extra]]
    return sorted({str(each) for each in _foreign([*case.part.requirements, *extras], parts)})


def _foreign(wanted: Iterable[Requirement], parts: dict[str, Part]) -> Iterator[Requirement]:
    for each in wanted:
        if not each.name.startswith(OWN):
            yield each
            continue
        part = parts[each.name]
        yield from _foreign(part.requirements, parts)
        for extra in each.extras:
            yield from _foreign(part.extras[extra], parts)


def resolve(uv: str, wanted: list[str], case: Case) -> str | None:
    """Return why the locked versions of `wanted` cannot be installed from wheels; None when they can."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requirements.in"
        source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        command = [uv, "pip", "compile", str(source), "--constraint", str(ROOT / "requirements.lock")]
        command += ["--python-platform", case.platform, "--python-version", case.python, "--only-binary", ":all:"]
        command += ["--no-annotate", "--no-header", "--no-python-downloads", "--python", sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def main(uv: str) -> int:
    parts = parts_of(ROOT)
    every = list(cases(parts))
    code = 0
    with ThreadPoolExecutor(2) as pool:
        reasons = pool.map(lambda case: resolve(uv, requirements(case, parts), case), every)
        for case, reason in zip(every, reasons, strict=True):
            print(f"{case}: {'wheels' if reason is None else 'NOT FROM WHEELS'}", flush=True)
            if reason is not None:
                print(f"  {reason}", file=sys.stderr)
                is_offline = any(word in reason for word in _UNREACHABLE)
                code = code or OFFLINE if is_offline else 1
    if code == OFFLINE:
        print("the package index cannot be reached: this was not checked", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
