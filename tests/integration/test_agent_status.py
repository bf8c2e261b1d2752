"""The device's own view over HTTP: no web page may read it, whatever name it makes point here."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from http.client import HTTPConnection
from threading import Thread

import pytest

from muster_agent.serving.admission import Admission
from muster_agent.serving.app import App
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.http import HttpServer, serve
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.table import ServingTable
from muster_agent.status import StatusApp
from muster_shared.ids import DeviceId
from muster_shared.messages import Hardware, Twin

WAIT_S = 20.0
TWIN = Twin(
    device=DeviceId("crane-07"),
    sent_at=1.0,
    boot="b",
    sequence=1,
    agent_version="1",
    counter=0,
    hardware=Hardware(device_class="sim", arch="x86_64"),
)


def ask(path: str, headers: Mapping[str, str]) -> int:
    """Return the status of the answer of an agent that serves nothing."""
    config = ServingConfig()
    table, regions = ServingTable(config), Regions()
    app = App(Service(table, config), agent_version="1", admission=Admission(config), regions=regions)

    def twin() -> "Future[Twin]":
        found: Future[Twin] = Future()
        found.set_result(TWIN)
        return found

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def start() -> HttpServer:
        return await serve(StatusApp(app, twin, lambda: True, "1"), port=0)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(WAIT_S)
    try:
        assert server.port is not None
        connection = HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        connection.request("GET", path, headers=dict(headers))
        with connection.getresponse() as answer:
            body = answer.read()
        connection.close()
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(WAIT_S), loop).result(WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)
        loop.close()
        regions.close()
    assert (b"crane-07" in body) is (path == "/v1/status" and answer.status == 200)
    return answer.status


@pytest.mark.parametrize("path", ["/v1/status", "/metrics"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "page.example:8000"}, 403),
        ({"Origin": "http://page.example"}, 403),
        ({"Origin": "http://localhost"}, 403),
    ],
)
def test_a_web_page_reads_neither_the_status_nor_the_metrics(path: str, headers: dict[str, str], expected: int) -> None:
    assert ask(path, headers) == expected
