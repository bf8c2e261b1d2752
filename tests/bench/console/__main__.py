"""`python -m bench.console [--devices N] [--only sqlite,postgresql] [--asked devices] [--times 20] [--reports 200]`

For each database: plants a fleet with a past, starts `muster serve` over it, and asks every page and list of `asked`
while devices report. Prints p50 and p95 as a client on this machine sees them, p50 against the bare query of the same
rows, start-up time and resident memory. Ends with 1 if some p95 is over the limit.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from sqlalchemy import text

from bench.console.asked import ASKED, Asked
from bench.console.planting import ONLINE_EACH, name_of, plant, step_of, twin_of
from bench.rollout.figures import OUT, Line, quantile, show
from harness.controller_process import bring_trust, provisioned, publish
from harness.postgres import PostgresMissing, Where, running_postgres
from muster_controller.db.engine import find_database
from muster_controller.db.side import SideDatabase
from muster_controller.operators.local import read_local
from muster_shared import topics
from muster_shared.ids import FleetId
from muster_shared.link import Link, LinkConfig, parse_broker_url
from muster_shared.messages import encode
from muster_shared.topics import Channel, DeviceTopic

LIMIT_S = 0.2
"""p95 of every page and list, on two cores."""
FLEET = FleetId("test")
REPORT_PIECE_S = 0.1
READY_S = 600.0  # It is measured, not judged.


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.console", description="What the console's pages cost.")
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--only", default="sqlite,postgresql", help="databases")
    parser.add_argument("--asked", default="", help="only addresses with this in them")
    parser.add_argument("--times", type=int, default=20, help="how often each is asked")
    parser.add_argument("--reports", type=int, default=200, help="reports a second meanwhile, half of a rollout")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    found: dict[str, list[Line]] = {}
    for name in given.only.split(","):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muster-console-")))
            where: Where = folder / "data" / "muster.db"
            if name == "postgresql":
                try:
                    where = stack.enter_context(running_postgres()).new_database()
                except PostgresMissing as missing:
                    OUT.print(f"postgresql is left out: {missing}")
                    continue
            elif name != "sqlite":
                parser.error(f"no database is called {name!r}; there are sqlite and postgresql")
            found[name] = _bench(folder, where, given)
            OUT.print(f"\n[bold]{name}[/], {given.devices:,} devices, {given.reports} reports a second")
            show(found[name])
    if given.json is not None:
        given.json.write_text(json.dumps({name: [vars(line) for line in lines] for name, lines in found.items()}))
    return any(line.passed is False for lines in found.values() for line in lines)


def _bench(folder: Path, where: Where, given: argparse.Namespace) -> list[Line]:
    arguments = ("--broker-port", "0", *(() if isinstance(where, Path) else ("--database", where)))
    with provisioned(folder, arguments=arguments) as process:
        began = time.monotonic()
        plant(where, given.devices, time.time())
        planted_s = time.monotonic() - began
        began = time.monotonic()
        process.ready_s = READY_S
        try:
            running = process.start()
        except AssertionError as error:
            raise SystemExit((folder / "controller.log").read_text()[-4000:]) from error
        started_s = time.monotonic() - began
        assert process.process is not None
        token = read_local(folder / "data")
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"{running.url}/api/v1", headers=headers, timeout=60.0, trust_env=False) as http:
            bring_trust(folder, http)
            publish(folder, http, "1.0.0", 1)
            people = _People(running.url, http)
            with _reports(running.broker_url, given.devices, given.reports), SideDatabase(find_database(where)) as side:
                lines = [
                    _line(each, people.client(each.selector), side, given.times)
                    for each in ASKED
                    if given.asked in each.path
                ]
            people.close()
        if process.process.poll() is not None:
            raise SystemExit((folder / "controller.log").read_text()[-4000:])
        memory = _resident_mb(process.process.pid)
    return [
        *lines,
        Line("planting the fleet", "", f"{planted_s:.1f} s", None),
        Line("start to first answer", "", f"{started_s:.1f} s", None),
        Line("resident memory", "", f"{memory:,.0f} MB", None),
    ]


class _People:
    """Clients by what they see of the fleet."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self._url = url
        self._http = http
        self._clients: dict[str, httpx.Client] = {}

    def client(self, selector: str) -> httpx.Client:
        if selector not in self._clients:
            headers = dict(self._http.headers)
            if selector:
                name = f"viewer-{len(self._clients)}"
                hired = {"name": name, "role": "viewer", "selector": selector}
                self._http.post("/operators", json=hired).raise_for_status()
                made = self._http.post("/tokens", json={"name": "bench", "operator": name}).raise_for_status().json()
                headers["Authorization"] = f"Bearer {made['token']}"
            self._clients[selector] = httpx.Client(base_url=self._url, headers=headers, timeout=60.0, trust_env=False)
        return self._clients[selector]

    def close(self) -> None:
        for each in self._clients.values():
            each.close()


def _line(asked: Asked, http: httpx.Client, side: SideDatabase, times: int) -> Line:
    took: list[float] = []
    for _ in range(times + 1):
        began = time.perf_counter()
        try:
            answer = http.get(asked.path)
        except httpx.HTTPError as error:
            return Line(asked.path, f"p95 <= {LIMIT_S * 1e3:.0f} ms", f"{type(error).__name__}: {error}", False)
        took.append(time.perf_counter() - began)
        if answer.status_code != 200:
            return Line(asked.path, f"p95 <= {LIMIT_S * 1e3:.0f} ms", f"status {answer.status_code}", False)
    first, took = took[0], took[1:]  # The first fills caches and compiles the template.
    p50, p95 = quantile(took, 0.5), quantile(took, 0.95)
    seen = f" as {asked.selector}" if asked.selector else ""
    spread = f"p50 {p50 * 1e3:.1f} ms, first {first * 1e3:.1f} ms"
    if asked.bare:
        bare = _bare_s(asked.bare, side, times)
        spread += f", {p50 / bare:.1f} times the bare query's {bare * 1e3:.2f} ms"
    return Line(asked.path + seen, f"p95 <= {LIMIT_S * 1e3:.0f} ms", f"{p95 * 1e3:.1f} ms", p95 <= LIMIT_S, spread)


def _bare_s(query: str, side: SideDatabase, times: int) -> float:
    took: list[float] = []
    for _ in range(times):
        with side.reading() as connection:
            began = time.perf_counter()
            connection.execute(text(query)).all()
            took.append(time.perf_counter() - began)
    return quantile(took, 0.5)


@contextmanager
def _reports(broker_url: str, devices: int, a_second: int) -> Iterator[None]:
    """Have those who are online report, so many a second, until the end of the block."""
    ending = threading.Event()
    link = Link(
        LinkConfig(parse_broker_url(broker_url), client_id="bench-reports", max_queued_out=10_000),
        lambda item: None,
        rng=random.Random(1),
    )

    def run() -> None:
        online = range(0, devices, ONLINE_EACH)
        told = 0
        while a_second and not ending.wait(REPORT_PIECE_S):
            for _ in range(max(1, round(a_second * REPORT_PIECE_S))):
                number, sequence = online[told % len(online)], 2 + told // len(online)
                # Every other report moves a rollout.
                channel = Channel.EVENT if number % (2 * ONLINE_EACH) else Channel.TWIN
                say = step_of if channel is Channel.EVENT else twin_of
                topic = topics.build(FLEET, DeviceTopic(name_of(number), channel))
                link.publish(topic, encode(say(number, time.time(), sequence)), qos=0, retain=False)
                told += 1

    link.start()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(5.0)
        link.stop(1.0)


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
