"""Our HTTP stack with two releases of one model that take turns, as a script in the device's environment.

    python swap_server.py BUNDLE_1 BUNDLE_2 PORT SWAPS PERIOD_S

It says `serving`, waits for a line, switches SWAPS times, each release loaded anew by its engine in another thread, and
says after each what is resident. It serves until it is told to end. It is the serving table under load, without the
conductor that decides when to switch.
"""

import asyncio
import json
import logging
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import uvloop

from muster_agent.core.plan import ServingPlan
from muster_agent.engines.registry import engine
from muster_agent.engines.warmup import warm_up
from muster_agent.io.glibc import limit_arenas
from muster_agent.logs import configure_logs
from muster_agent.serving.admission import Admission
from muster_agent.serving.app import App
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.http import serve
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import digest, parse_manifest

PLAN = ServingPlan(inline=True, batch_max=32)  # What a device finds out for so small a model.


def served(folder: Path, cache: Path) -> Served:
    """Load a release as the agent's lab does."""
    raw = (folder / "bundle.json").read_bytes()
    manifest = parse_manifest(raw)
    variant = manifest.variants[0]
    session = engine(variant.runtime).load(
        folder / variant.files[0], variant, manifest.inputs, manifest.outputs, threads=1, cache_dir=cache
    )
    latency_ms = warm_up(session, manifest, folder / manifest.golden.file)
    return Served(manifest=manifest, manifest_sha256=digest(raw), session=session, latency_ms=latency_ms, plan=PLAN)


def swap(table: ServingTable, folders: list[Path], cache: Path, swaps: int, period_s: float) -> None:
    sys.stdin.readline()
    begin = time.monotonic()
    try:
        for number in range(1, swaps + 1):
            time.sleep(max(0.0, begin + number * period_s - time.monotonic()))
            release = served(folders[number % 2], cache)
            table.switch(release.manifest.model, release)
            print(json.dumps({"rss_mb": psutil.Process().memory_info().rss / 2**20}), flush=True)
    except Exception as error:  # Who reads the lines waits for the last one.
        print(json.dumps({"ended": repr(error)}), flush=True)
        raise
    print(json.dumps({"ended": ""}), flush=True)


async def main() -> None:
    folders, port, swaps, period_s = [Path(each) for each in sys.argv[1:3]], *map(float, sys.argv[3:6])
    configure_logs(logging.WARNING)
    limit_arenas()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    table = ServingTable()
    with tempfile.TemporaryDirectory() as cache:
        first = served(folders[0], Path(cache))
        table.switch(first.manifest.model, first)
        app = App(Service(table), admission=Admission(ServingConfig()), regions=Regions(), agent_version="bench")
        server = await serve(app, host="127.0.0.1", port=int(port))
        arguments = (table, folders, Path(cache), int(swaps), period_s)
        threading.Thread(target=swap, args=arguments, daemon=True).start()
        print("serving", flush=True)
        await stop.wait()
        await server.stop(5.0)
        await asyncio.to_thread(table.close, 5.0)


if __name__ == "__main__":
    uvloop.run(main())
