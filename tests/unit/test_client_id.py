"""What the agent is called at the broker."""

import re
import stat
from pathlib import Path

from muster_agent.io.client_id import FILE, client_id
from muster_shared.ids import DeviceId, FleetId

FLEET, DEVICE = FleetId("plant"), DeviceId("crane-07")


def test_nobody_can_guess_it_and_it_stays(tmp_path: Path) -> None:
    first, other = tmp_path / "one", tmp_path / "other"
    first.mkdir()
    other.mkdir()

    found = [client_id(folder, FLEET, DEVICE) for folder in (first, first, other)]

    assert re.fullmatch(r"muster-plant-crane-07-[0-9a-f]{16}", found[0])
    assert found[0] == found[1] != found[2]
    assert stat.S_IMODE((first / FILE).stat().st_mode) == 0o600


def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"0123456789abcde\xff\x00.")

    found = client_id(tmp_path, FLEET, DEVICE)

    assert re.fullmatch(r"muster-plant-crane-07-[0-9a-f]{16}", found)
    assert client_id(tmp_path, FLEET, DEVICE) == found


def test_a_disk_that_keeps_nothing_is_no_reason_not_to_come_in(tmp_path: Path) -> None:
    found = client_id(tmp_path / "missing", FLEET, DEVICE)

    assert re.fullmatch(r"muster-plant-crane-07-[0-9a-f]{16}", found)
