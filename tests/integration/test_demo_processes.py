"""The demo's processes: restarted after a crash, stopped together, found again after the demo itself was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from muster_simulator.demo.processes import Crew, ProcessFailed, Program, end_leftovers

pytestmark = pytest.mark.timeout(60)

WAIT_S = 15.0
SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
FAIL = (sys.executable, "-c", "import sys; sys.exit('it has no luck')")


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path / "pids.json")
    yield crew
    crew.stop()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_supervised_process_comes_back_after_a_crash(crew: Crew, tmp_path: Path) -> None:
    child = crew.start(Program("agent", SLEEP, tmp_path / "agent.log", restart_s=0.1))
    before = child.pid

    crew.kill("agent")

    wait_until(lambda: child.restarts == 1 and child.is_running, "a restart")
    assert child.pid != before


def test_an_unsupervised_process_that_ends_is_told_with_its_last_words(crew: Crew, tmp_path: Path) -> None:
    child = crew.start(Program("load", FAIL, tmp_path / "load.log"))
    wait_until(lambda: not child.is_running, "its end")

    with pytest.raises(ProcessFailed, match="it has no luck"):
        crew.require()


def test_a_task_that_is_done_is_no_failure(crew: Crew, tmp_path: Path) -> None:
    crew.start(Program("build", (sys.executable, "-c", ""), tmp_path / "build.log", is_task=True))
    crew.finish("build", WAIT_S)

    crew.require()


def test_stopping_ends_everything_and_forgets_the_pids(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "pids.json")
    pids = [crew.start(Program(name, SLEEP, tmp_path / f"{name}.log", restart_s=0.1)).pid for name in ("a", "b")]

    crew.stop()

    assert not any(map(is_running, pids))
    assert not (tmp_path / "pids.json").exists()


def test_the_next_demo_ends_what_a_killed_one_left_running(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from muster_simulator.demo.processes import Crew, Program\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "crew = Crew(folder / 'pids.json')\n"
        f"child = crew.start(Program('agent', {SLEEP!r}, folder / 'agent.log', restart_s=0.1))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    left = int(demo.stdout.readline())
    demo.kill()
    demo.wait()
    demo.stdout.close()

    ended = end_leftovers(tmp_path / "pids.json")

    assert ended == ["agent"]
    wait_until(lambda: not is_running(left), "its end")


def test_a_process_that_got_the_number_of_a_former_one_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        pids = tmp_path / "pids.json"
        pids.write_text(f'[{{"name": "agent", "pid": {stranger.pid}, "began_at": 1.0}}]')

        ended = end_leftovers(pids)

        assert ended == []
        assert stranger.poll() is None
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()
