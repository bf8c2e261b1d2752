"""`python -m muster_simulator.load --config load.json [--print]`: run simulated devices until SIGTERM or SIGINT."""

import argparse
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import msgspec

from muster_shared.errors import MusterError
from muster_shared.link import parse_broker_url
from muster_simulator.load.config import LoadConfig, load_config
from muster_simulator.load.fleet import LoadedFleet
from muster_simulator.load.truth import Truths

STATUS_EVERY_S = 1.0


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m muster_simulator.load", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the configuration, JSON")
    parser.add_argument("--print", action="store_true", help="print the counters every second, a JSON line each")
    options = parser.parse_args()
    try:
        config = load_config(options.config)
        fleet = _fleet(config)
    except (MusterError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    fleet.start()
    while not ending.wait(STATUS_EVERY_S):
        _tell(fleet, config.status_file, also_print=options.print)
    fleet.stop()
    return 0


def _fleet(config: LoadConfig) -> LoadedFleet:
    config.work_dir.mkdir(parents=True, exist_ok=True)
    return LoadedFleet(
        config.fleet,
        config.devices(),
        parse_broker_url(config.broker_url),
        config.bootstrap_root.read_bytes(),
        config.work_dir / "trust",
        Truths(config.truth_dir),
        requests_per_s=lambda model: config.requests_per_s.get(model, config.requests_per_s_other),
        twin_every_s=config.twin_every_s,
        seed=config.seed,
        identities=config.identities,
        clock_speed=config.metrics_clock_speed,
        clock_since=config.metrics_clock_since,
    )


def _tell(fleet: LoadedFleet, status_file: Path | None, *, also_print: bool) -> None:
    try:
        line = msgspec.json.encode(fleet.counters())
    except (queue.Empty, queue.Full):
        return  # Busy; the next second will do.
    if status_file is not None:
        temporary = status_file.with_name(f"{status_file.name}.tmp")
        temporary.write_bytes(line + b"\n")
        os.replace(temporary, status_file)
    if also_print:
        print(line.decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
