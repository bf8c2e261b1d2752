"""Anonymous windows of a real agent: through a real broker, sealed to a mixer's key that the offline keys vouch for.

The clock of the metrics runs 600 times as fast: an hour passes in 6 s, the day after it in 144 s.
"""

import asyncio
import json
import queue
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from harness.digits_agent import DigitsAgent, digits_agent
from muster_agent.client import Client
from muster_agent.metrics.book import Totals
from muster_agent.metrics.showing import Showing, Waiting
from muster_agent.serving.admission import Admission, bearer
from muster_agent.serving.app import App
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.http import serve
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.table import ServingTable
from muster_agent.status import StatusApp
from muster_shared.link import Link, LinkConfig, LinkItem, Received, Subscribed, parse_broker_url
from muster_shared.metrics import HOUR_S, UNITS, Kind, Window, cohort, key_id, units
from muster_shared.sealing import open_sealed
from muster_shared.topics import MetricsTopic, build

PRIVATE = X25519PrivateKey.generate()
PUBLIC = PRIVATE.public_key().public_bytes_raw()
TIMEOUT_S = 90.0


class Mixer:
    """Opens what comes on `metrics/+`, as a mixer does; it adds nothing up."""

    def __init__(self, agent: DigitsAgent) -> None:
        self.windows: list[Window] = []
        self.sizes: set[int] = set()
        self._items: queue.Queue[LinkItem] = queue.Queue()
        config = LinkConfig(parse_broker_url(agent.broker.url), client_id="mixer")
        self._link = Link(config, self._items.put, rng=random.Random(1))
        self._link.subscribe([f"muster/v1/{agent.fleet.fleet}/metrics/+"])
        self._link.start()
        while not isinstance(self._items.get(timeout=TIMEOUT_S), Subscribed):
            pass

    def close(self) -> None:
        self._link.stop(5.0)

    def wait_for(self, kind: Kind, after: int = -1) -> Window:
        """Return the next window of an hour that begins after `after` and has something of `kind`."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                item = self._items.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(item, Received):
                window = open_sealed(item.payload, {key_id(PUBLIC): PRIVATE})
                self.windows.append(window)
                self.sizes.add(len(item.payload))
                self._link.ack(item.token)
                if window.period_start > after and units(window, kind):
                    return window
        raise AssertionError(f"no window with {kind} within {TIMEOUT_S} s; there were {self.windows[-3:]}")


@pytest.fixture
def agent() -> Iterator[DigitsAgent]:
    more = f"[metrics]\nclock_speed = 600.0\nclock_since = {time.time():.0f}.0\n"
    with (
        tempfile.TemporaryDirectory(prefix="mm-") as folder,
        digits_agent(Path(folder), "2.0.0", more=more, mixers={key_id(PUBLIC): PUBLIC}) as agent,
    ):
        yield agent


@pytest.fixture
def mixer(agent: DigitsAgent) -> Iterator[Mixer]:
    mixer = Mixer(agent)
    yield mixer
    mixer.close()


def shown(agent: DigitsAgent, *more: str) -> Any:
    words = [sys.executable, "-m", "muster_agent.cli", "metrics", "--config", str(agent.folder / "agent.toml"), *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in more else done.stdout


def ask(agent: DigitsAgent, times: int) -> None:
    with Client(str(agent.socket)) as client:
        model = client.model("digits")
        for _ in range(times):
            model.infer(np.zeros((1, 1, 8, 8), np.float32))


def test_windows_leave_through_the_broker_and_a_kill_makes_no_second_one_of_an_hour(
    agent: DigitsAgent, mixer: Mixer
) -> None:
    ask(agent, 50)
    first = mixer.wait_for(Kind.CLASSES)
    before = shown(agent, "--json", "--endpoint", agent.endpoint)
    agent.fleet.agent.kill()
    agent.restart()
    mixer.wait_for(Kind.DRIFT, after=first.period_start + HOUR_S)
    ask(agent, 50)
    second = mixer.wait_for(Kind.CLASSES, after=first.period_start + HOUR_S)
    agent.fleet.agent.stop()
    after = shown(agent, "--json")

    assert (first.cell.model, first.cell.version, first.cell.device_class, first.cell.classes) == (
        "digits",
        "2.0.0",
        "lab",
        10,
    )
    for window in (first, second):
        (place,) = units(window, Kind.CLASSES)
        assert units(window, Kind.CLASSES) == {place: UNITS}
    assert before["mixer"] == key_id(PUBLIC)
    assert before["waits_for"] == ""
    assert {window["topic"] for window in before["next"]} == {
        build(agent.fleet.fleet, MetricsTopic(cohort(first.cell)))
    }
    assert {window["bytes"] for window in before["next"]} == mixer.sizes
    assert after["running"] is False
    assert after["totals"]["sent_hours"] >= before["totals"]["sent_hours"] > 0
    nonces: dict[tuple[int, int], set[str]] = {}
    for window in mixer.windows:
        nonces.setdefault((window.period_s, window.period_start), set()).add(window.nonce)
    assert all(len(each) == 1 for each in nonces.values())


# -- who may see that --------------------------------------------------------------------------------------------------


def answered(headers: Mapping[str, str], config: ServingConfig) -> tuple[int, bytes]:
    """Return what the route says whose windows are one word."""
    table, regions, admission = ServingTable(config), Regions(), Admission(config)
    app = App(Service(table, config), agent_version="1", admission=admission, regions=regions)
    word = Showing(waits_for="nobody", mixer=None, at=None, next=(), waiting=Waiting(), totals=Totals())
    status = StatusApp(
        app,
        Future,
        lambda: True,
        "1",
        windows=lambda: word,
        may_see=lambda request: admission.caller(bearer(request.headers.get(b"authorization")), request.peer),
    )
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(serve(status, port=0), loop).result(TIMEOUT_S)
    try:
        assert server.port is not None
        connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
        connection.request("GET", "/v1/metrics", headers=dict(headers))
        with connection.getresponse() as answer:
            return answer.status, answer.read()
    finally:
        connection.close()
        asyncio.run_coroutine_threadsafe(server.stop(TIMEOUT_S), loop).result(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_S)
        loop.close()
        regions.close()


@pytest.mark.parametrize(
    ("headers", "require_token", "expected"),
    [
        ({}, False, 200),
        ({"Origin": "http://page.example"}, False, 403),
        ({"Host": "page.example:8000"}, False, 403),
        ({}, True, 401),
        ({"Authorization": "Bearer somebody"}, True, 401),
    ],
)
def test_windows_are_shown_to_whoever_may_ask_models_and_to_no_web_page(
    headers: dict[str, str], require_token: bool, expected: int
) -> None:
    status, body = answered(headers, ServingConfig(require_token=require_token))

    assert status == expected
    assert (b"nobody" in body) is (expected == 200)
