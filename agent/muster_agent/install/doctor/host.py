"""Disk, memory and hardware. It writes one small file into the data folder, to time it, and removes it."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from muster_agent.engines import registry
from muster_agent.install.doctor.finding import Finding, fail, ok, warn
from muster_agent.io.host import HardwareOverrides, detect_hardware

FREE_WARN_BYTES, FREE_FAIL_BYTES = 512 * 2**20, 32 * 2**20
FSYNC_WARN_S = 0.5
"""An SD card that needs longer is wearing out, or something else keeps it busy."""
MEMORY_WARN_BYTES, MEMORY_FAIL_BYTES = 128 * 2**20, 32 * 2**20
_PROBE_BYTES = 4096
_PROBES = 3
_MIB = 2**20


def check_disk(data_dir: Path) -> Finding:
    if not data_dir.is_dir():
        return fail("disk", f"{data_dir} is no folder", "run `muster-agent install`, or correct data_dir")
    try:
        took_s = max(_time_write(data_dir) for _ in range(_PROBES))
    except OSError as error:
        return fail(
            "disk",
            f"{data_dir} cannot be written: {error.strerror or error}",
            "free some space, mount it for writing, or run doctor as the agent's user",
        )
    return judge_disk(data_dir, shutil.disk_usage(data_dir).free, took_s)


def judge_disk(data_dir: Path, free_bytes: int, fsync_s: float) -> Finding:
    """Return the finding. `fsync_s`: the slowest of a few small durable writes."""
    said = f"{free_bytes // _MIB} MiB free in {data_dir}, a durable write takes {fsync_s * 1000:.0f} ms"
    if free_bytes < FREE_FAIL_BYTES:
        return fail("disk", said, "free some space: no release fits")
    if free_bytes < FREE_WARN_BYTES:
        return warn("disk", said, "free some space: a large release may not fit")
    if fsync_s > FSYNC_WARN_S:
        return warn("disk", said, "the disk is busy or worn out; updates take long")
    return ok("disk", said)


def check_memory() -> Finding:
    memory = psutil.virtual_memory()
    return judge_memory(int(memory.available), int(memory.total))


def judge_memory(available_bytes: int, total_bytes: int) -> Finding:
    said = f"{available_bytes // _MIB} of {total_bytes // _MIB} MiB are available"
    if available_bytes < MEMORY_FAIL_BYTES:
        return fail("memory", said, "end other programs, or set serving.memory_budget_mb")
    if available_bytes < MEMORY_WARN_BYTES:
        return warn("memory", said, "two releases at once may not fit; set serving.memory_budget_mb")
    return ok("memory", said)


def check_hardware(device_class: str) -> Finding:
    found = detect_hardware(device_class, registry.available(), HardwareOverrides())
    render = sorted(path.name for path in Path("/dev/dri").glob("renderD*")) if Path("/dev/dri").is_dir() else []
    more = f", {', '.join(render)}" if render else ""
    return ok(
        "hardware", f"{found.arch}, {found.cpu_count} processors, {found.memory_mb} MiB{more}, class {device_class}"
    )


def _time_write(folder: Path) -> float:
    """Return how long it takes until a small file is on the disk, in seconds. Raises OSError."""
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(b"\0" * _PROBE_BYTES)
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began
