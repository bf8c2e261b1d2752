"""Hot swaps at full load: two releases take turns under 32 connections of wrk, which look at every single answer.

An answer is wrong when the version that it names is not the one whose classes its numbers show.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from bench.serving import wrk
from bench.serving.models import Subject
from bench.serving.processes import ServerFailed
from bench.serving.wire import ask

CONCURRENCY = 32
SWAPS = 52
"""So that the memory is looked at after fifty and more."""
SETTLE_S = 3.0
WARM_S = 5

_LOOK = """
local ffi = require("ffi")
local numbers = ffi.new("float[%(classes)d]")
local best = {["1.0.0"] = %(first)d, ["2.0.0"] = %(second)d}
wrong, seen1, seen2 = 0, 0, 0
function response(status, headers, body)
  local version = body:match('"model_version":"([^"]+)"')
  if status ~= 200 or version == nil or #body < %(bytes)d then wrong = wrong + 1 return end
  ffi.copy(numbers, body:sub(-%(bytes)d), %(bytes)d)
  local at = 0
  for i = 1, %(classes)d - 1 do if numbers[i] > numbers[at] then at = i end end
  if best[version] ~= at then wrong = wrong + 1 end
  if version == "1.0.0" then seen1 = seen1 + 1 else seen2 = seen2 + 1 end
end
"""


@dataclass(frozen=True)
class SwapResult:
    """`rss_before_mb`: at rest after some load, before the first swap; `rss_after_mb`: at rest after the last."""

    swaps: int
    requests: int
    failed: int
    wrong: int
    seen: tuple[int, int]
    rps: float
    p99_us: float
    rss_before_mb: float
    rss_peak_mb: float
    rss_after_mb: float


def run(one: Subject, two: Subject, python: Path, seconds: int, port: int, folder: Path) -> SwapResult:
    """Swap SWAPS times within `seconds` of full load."""
    asked = ask(one, "v2-binary")
    look = _LOOK % {
        "classes": one.expected.size,
        "bytes": one.expected.size * 4,
        "first": int(one.expected.argmax()),
        "second": int(two.expected.argmax()),
    }
    lua = wrk.script(asked, folder, extra=look)
    here = Path(__file__).parent / "swap_server.py"
    arguments = [str(one.folder), str(two.folder), str(port), str(SWAPS), f"{(seconds - 2) / SWAPS:.3f}"]
    with (folder / "swap.log").open("wb") as log:
        server = subprocess.Popen(
            [str(python), str(here), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        if server.stdout.readline() != "serving\n":
            raise ServerFailed(f"the swap server did not start: {(folder / 'swap.log').read_text()[-1500:]}")
        process = psutil.Process(server.pid)
        wrk.run(lua, port, asked, CONCURRENCY, WARM_S)
        time.sleep(SETTLE_S)
        before_mb = process.memory_info().rss / 2**20
        load = subprocess.Popen(
            wrk.command(lua, port, asked, CONCURRENCY, seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.stdin.write("go\n")
        server.stdin.flush()
        try:
            printed, _ = load.communicate(timeout=seconds + 60)
        finally:
            if load.poll() is None:
                load.kill()
                load.wait()
        resident_mb = list(_until_ended(server.stdout))
        time.sleep(SETTLE_S)
        after_mb = process.memory_info().rss / 2**20
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(15)
        server.stdin.close()
        server.stdout.close()
    done = wrk.result(printed)
    return SwapResult(
        SWAPS,
        done.requests,
        done.failed,
        done.wrong,
        done.seen,
        done.rps,
        done.p99_us,
        before_mb,
        max(resident_mb),
        after_mb,
    )


def _until_ended(printed: IO[str]) -> Iterator[float]:
    """Yield what was resident after each swap. Raises ServerFailed when one did not come about."""
    for line in printed:
        said = json.loads(line)
        if "ended" not in said:
            yield said["rss_mb"]
        elif said["ended"]:
            raise ServerFailed(f"a swap failed: {said['ended']}")
        else:
            return
