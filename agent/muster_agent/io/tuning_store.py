"""What was measured of a release on this device, kept: `tuning/<bundle sha256>.json`, by class of hardware.

    {"v": 1, "entries": [{"hardware": {...}, "variant": ..., "plan": {...}, "tuning": {...}}, ...]}     newest first

A file that is damaged, too large or of another format is as good as none: it is measured again. It measures nothing.
"""

import hashlib
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec
import structlog

from muster_agent.core.plan import ServingPlan
from muster_agent.errors import StoreError
from muster_agent.io.disk import Disk
from muster_shared.bundle import Variant
from muster_shared.ids import Sha256
from muster_shared.messages import Tuning

FOLDER = "tuning"
FORMAT = 1
ENTRIES_MAX = 4  # Classes of hardware that one disk may have been in, and versions of engines before an upgrade.
FILE_BYTES_MAX = 128 * 1024
PLAN_BATCH_MAX = 1024
PLAN_DELAY_US_MAX = 10_000_000

log = structlog.get_logger(__name__)


class HardwareClass(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement depends on besides the release: on another it says nothing."""

    processor: str
    arch: str
    cpus: int
    threads_max: int
    engines: dict[str, str]
    """Version by runtime, of those installed and enabled."""


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """One measured choice."""

    hardware: HardwareClass
    variant: str
    plan: ServingPlan
    tuning: Tuning


class _File(msgspec.Struct, frozen=True, kw_only=True):
    v: int = FORMAT
    entries: tuple[Remembered, ...] = ()


class TuningStore:
    """The folder `tuning/` of a disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def recall(self, bundle: Sha256, hardware: HardwareClass, variants: tuple[Variant, ...]) -> Remembered | None:
        """Return what was measured of `bundle` on this class of hardware; None when it must be measured.

        What could not have been measured here (another variant, more threads than allowed) is not believed.
        """
        names = {variant.name for variant in variants}
        for entry in self._read(bundle):
            if entry.hardware == hardware and entry.variant in names and _plausible(entry.plan, hardware):
                return entry
        return None

    def remember(self, bundle: Sha256, found: Remembered) -> None:
        """Keep `found`, durably. A disk that does not take it is no reason not to serve."""
        others = (entry for entry in self._read(bundle) if entry.hardware != found.hardware)
        raw = msgspec.json.encode(_File(entries=(found, *others)[:ENTRIES_MAX]))
        path = _path(bundle)
        fresh = f"{path}.new"
        try:
            self._disk.remove(fresh)  # A longer one that was not finished would leave its tail.
            self._disk.write_at(fresh, 0, raw)
            self._disk.fsync(fresh)
            self._disk.rename(fresh, path)
            self._disk.fsync_folder(FOLDER)
        except StoreError as error:
            log.warning("tuning_not_kept", bundle=bundle, error=str(error))

    def collect(self, keep: frozenset[Sha256]) -> None:
        """Forget every release that is not in `keep`."""
        wanted = {f"{bundle}.json" for bundle in keep}
        try:
            for name in self._disk.list(FOLDER):
                if name not in wanted:
                    self._disk.remove(f"{FOLDER}/{name}")
        except StoreError as error:
            log.warning("tuning_not_collected", error=str(error))

    def _read(self, bundle: Sha256) -> tuple[Remembered, ...]:
        path = _path(bundle)
        try:
            if self._disk.size(path) is None:
                return ()
            raw = self._disk.read(path, 0, FILE_BYTES_MAX + 1)
            if len(raw) > FILE_BYTES_MAX:
                raise StoreError(f"{path} has more than {FILE_BYTES_MAX} bytes")
            file = msgspec.json.decode(raw, type=_File)
        except (StoreError, msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            log.warning("tuning_unreadable", bundle=bundle, error=str(error))
            return ()
        return file.entries[:ENTRIES_MAX] if file.v == FORMAT else ()


def hardware_class(*, cpus: int, threads_max: int, runtimes: tuple[str, ...]) -> HardwareClass:
    """Return the class of this device.

    Args:
        runtimes: Distribution names of the engines that may be used.
    """
    versions: dict[str, str] = {}
    for runtime in runtimes:
        versions[runtime] = _version(runtime)
    return HardwareClass(
        processor=_processor(), arch=platform.machine(), cpus=cpus, threads_max=threads_max, engines=versions
    )


def _version(runtime: str) -> str:
    """Return the installed version, read off the folder beside the package.

    `importlib.metadata` would say the same for 1.3 MB that an idle device holds for ever.
    """
    spec = find_spec(runtime)
    if spec is None or spec.origin is None:
        return "unknown"
    named = sorted(folder.name for folder in Path(spec.origin).parent.parent.glob(f"{runtime}-*.dist-info"))
    # Another build of it has another name, such as onnxruntime-gpu.
    return named[-1].removeprefix(f"{runtime}-").removesuffix(".dist-info") if named else "unknown"


def _processor() -> str:
    """Return the model of the processor and a digest of what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.processor() or "unknown"
    said: Mapping[str, str] = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    }
    model = said.get("model name") or f"part {said.get('cpu part', 'unknown')}"
    able = said.get("flags") or said.get("features") or ""
    return f"{model[:100]} {hashlib.sha256(able.encode()).hexdigest()[:8]}"


def _path(bundle: Sha256) -> str:
    return f"{FOLDER}/{bundle}.json"


def _plausible(plan: ServingPlan, hardware: HardwareClass) -> bool:
    return (
        1 <= plan.threads <= hardware.threads_max
        and 1 <= plan.instances_min <= plan.instances_max <= hardware.cpus
        and 1 <= plan.batch_max <= PLAN_BATCH_MAX
        and 0 <= plan.delay_us <= PLAN_DELAY_US_MAX
    )
