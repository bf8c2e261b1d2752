"""The one load generator for HTTP: `wrk`, a closed loop of `concurrency` connections that all post one fixed body.

Its own thread takes a core's share like every caller's would, the same for every server.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.serving.wire import Ask

TIMEOUT_S = 30

_SCRIPT = """
wrk.method = "POST"
local file = io.open("%(body)s", "rb")
wrk.body = file:read("*a")
file:close()
%(headers)s
local threads = {}
function setup(thread) table.insert(threads, thread) end
%(extra)s
function done(summary, latency, requests)
  local counts = {}
  for _, thread in ipairs(threads) do
    for _, name in ipairs({"wrong", "seen1", "seen2"}) do
      counts[name] = (counts[name] or 0) + (thread:get(name) or 0)
    end
  end
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, "max_us": %%d, "failed": %%d, '
      .. '"wrong": %%d, "seen1": %%d, "seen2": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout, counts.wrong, counts.seen1, counts.seen2))
end
"""


class WrkMissing(Exception):
    """There is nothing to measure HTTP with."""

    def __init__(self) -> None:
        super().__init__("wrk is not installed; get it with `apt-get install wrk` (Debian, Ubuntu) or from your system")


@dataclass(frozen=True)
class Load:
    """What came of it. `wrong` and `seen` are counted only by a script that looks at the answers."""

    rps: float
    p50_us: float
    p99_us: float
    requests: int
    failed: int
    wrong: int = 0
    seen: tuple[int, int] = (0, 0)


def require() -> str:
    """Return the path of wrk, or raise WrkMissing."""
    found = shutil.which("wrk")
    if found is None:
        raise WrkMissing
    return found


def script(asked: Ask, folder: Path, *, extra: str = "") -> Path:
    """Write the Lua script that posts `asked`, and return its path. `extra` is Lua that runs first."""
    body, path = folder / "body", folder / "post.lua"
    body.write_bytes(asked.body)
    headers = "\n".join(f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in asked.headers.items())
    path.write_text(_SCRIPT % {"body": body, "headers": headers, "extra": extra})
    return path


def command(lua: Path, port: int, asked: Ask, concurrency: int, seconds: int) -> list[str]:
    options = ["-t", "1", "-c", str(concurrency), "-d", f"{seconds}s", "--timeout", f"{TIMEOUT_S}s", "--latency"]
    return [require(), *options, "-s", str(lua), f"http://127.0.0.1:{port}{asked.path}"]


def run(lua: Path, port: int, asked: Ask, concurrency: int, seconds: int) -> Load:
    """Load the server for `seconds` (whole ones: wrk knows no others)."""
    done = subprocess.run(
        command(lua, port, asked, concurrency, seconds),
        capture_output=True,
        text=True,
        timeout=seconds + TIMEOUT_S + 30,
        check=True,
    )
    return result(done.stdout)


def result(printed: str) -> Load:
    line = next(line for line in printed.splitlines() if line.startswith("RESULT "))
    figures: Mapping[str, int] = json.loads(line.removeprefix("RESULT "))
    rps = figures["requests"] / (figures["duration_us"] / 1e6)
    return Load(
        rps,
        figures["p50_us"],
        figures["p99_us"],
        figures["requests"],
        figures["failed"],
        figures["wrong"],
        (figures["seen1"], figures["seen2"]),
    )


def _lua(text: str) -> str:
    return json.dumps(text)
