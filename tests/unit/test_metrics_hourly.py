"""The metrics' round on the serving loop: nothing ends it, detectors hear of each hour, an orderly end keeps all."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.metrics_device import BEGAN, Broker, Device, in_memory, one
from muster_agent.metrics.hourly import Hourly
from muster_agent.metrics.port import Tally
from muster_shared.ids import Sha256
from muster_shared.metrics import HOUR_S


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as found:
        yield found


class Counting:
    """Meters that say one inference whenever they are asked, and fail when they are told to."""

    def __init__(self, device: Device, until: int = 20) -> None:
        self.device = device
        self.until = until
        self.hours = 0
        self.taken = 0
        self.fails = 0
        self.done = asyncio.Event()

    def take(self) -> list[Tally]:
        self.taken += 1
        self.device.at += HOUR_S / 4
        if self.taken > self.until:
            self.done.set()
        if self.taken == 3:
            self.fails += 1
            raise ValueError("a fault of the meters")
        return [one(1)]

    def hour_over(self) -> None:
        self.hours += 1

    def states(self) -> Mapping[Sha256, bytes]:
        return {Sha256("a"): str(self.hours).encode()}


def test_a_fault_does_not_end_it_and_detectors_hear_of_every_hour(folder: Path) -> None:
    device = Device(folder, Broker(is_up=False))
    device.look()

    async def go() -> Counting:
        meters = Counting(device)
        hourly = Hourly(device.sending, meters, device.journal, speed=1e9)
        running = asyncio.create_task(hourly.run())
        await asyncio.wait_for(meters.done.wait(), 30)
        running.cancel()
        await hourly.rest()
        return meters

    meters = asyncio.run(go())

    again = Device(folder, Broker())
    assert meters.fails == 1
    assert meters.hours == int((device.at - BEGAN) // HOUR_S)
    assert again.inferences == meters.taken - 1
    assert again.journal.recall(Sha256("a")) == str(meters.hours).encode()


def test_what_was_taken_when_the_agent_is_told_to_stop_is_kept_before_it_ends(folder: Path) -> None:
    device = Device(folder, Broker(is_up=False))
    device.look()
    disk_is_free = threading.Event()

    async def go() -> Counting:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        slow = loop.run_in_executor(None, disk_is_free.wait, 30)
        meters = Counting(device, until=0)
        hourly = Hourly(device.sending, meters, device.journal, speed=1e9)
        running = asyncio.create_task(hourly.run())
        await asyncio.wait_for(meters.done.wait(), 30)  # Taken, and behind the slow disk.
        running.cancel()
        resting = asyncio.create_task(hourly.rest())
        await asyncio.wait([running])
        disk_is_free.set()
        await asyncio.gather(slow, resting)
        return meters

    meters = asyncio.run(go())

    assert meters.taken == 2
    assert Device(folder, Broker()).inferences == 2
