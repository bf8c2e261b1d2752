"""Simulated devices before they connect."""

import re
from pathlib import Path

from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import parse_broker_url
from muster_shared.messages import Hardware
from muster_simulator.load.fleet import LoadedFleet
from muster_simulator.load.truth import Truths

HARDWARE = Hardware(device_class="camera", arch="x86_64", memory_mb=512, runtimes=("onnxruntime",))


def names(folder: Path) -> list[str]:
    """What the devices of a new process are called at the broker."""
    fleet = LoadedFleet(
        FleetId("yard"),
        {DeviceId("sim-1"): HARDWARE, DeviceId("sim-2"): HARDWARE},
        parse_broker_url("mqtt://127.0.0.1:1"),
        b"",
        folder / "trust",
        Truths(folder),
        requests_per_s=lambda _: 1.0,
        twin_every_s=5.0,
        seed=1,
    )
    for device in fleet.devices:
        device.link.stop(1.0)
    return [device.link._config.client_id for device in fleet.devices]


def test_nobody_can_guess_what_a_simulated_device_is_called_at_the_broker(tmp_path: Path) -> None:
    first, again = names(tmp_path), names(tmp_path)

    assert [re.sub(r"-[0-9a-f]{16}$", "", name) for name in first] == ["muster-yard-sim-1", "muster-yard-sim-2"]
    assert len({name[-16:] for name in (*first, *again)}) == 4, "the seed has no part in it"
