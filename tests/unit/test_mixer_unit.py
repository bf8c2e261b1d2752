"""The mixer's systemd unit: it is sandboxed, and nothing of what a window held is written anywhere."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "muster-mixer.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_calls_its_exposure_ok_or_better() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT)]

    scored = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert scored.returncode == 0, scored.stdout  # 20 stands for 2.0 of 10; systemd calls 1.0 to 4.9 OK.


def test_neither_a_core_dump_nor_swap_takes_what_a_window_held_to_a_disk() -> None:
    lines = UNIT.read_text().splitlines()

    assert "LimitCORE=0" in lines
    assert "MemorySwapMax=0" in lines
