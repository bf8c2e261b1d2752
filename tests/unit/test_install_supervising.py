"""When the supervisor starts, ends and restarts, without any process; and one that looks after a real one."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from muster_agent.install.supervising import Heard, Order, Patience, Phase, Watch, advance

PATIENCE = Patience(start_s=90, watchdog_s=60, stop_s=20, back_off_s=1, back_off_max_s=60, steady_s=30)
UP = Watch(phase=Phase.UP, due=160.0, began=90.0)


def test_an_agent_is_started_at_once_and_is_up_when_it_says_so() -> None:
    starting, order = advance(Watch(), Heard.TIME, 100.0, PATIENCE)
    up, nothing = advance(starting, Heard.READY, 101.0, PATIENCE)

    assert (starting.phase, order) == (Phase.STARTING, Order.START)
    assert (up.phase, up.due, nothing) == (Phase.UP, 161.0, None)


def test_an_agent_that_falls_silent_is_killed_and_started_again() -> None:
    alive, _ = advance(UP, Heard.ALIVE, 150.0, PATIENCE)
    in_time, nothing = advance(alive, Heard.TIME, 209.0, PATIENCE)
    ending, order = advance(in_time, Heard.TIME, 210.0, PATIENCE)
    waiting, _ = advance(ending, Heard.ENDED, 211.0, PATIENCE)

    assert (nothing, order) == (None, Order.KILL)
    assert (waiting.phase, waiting.due) == (Phase.WAITING, 212.0)


def test_one_that_is_not_ready_in_time_is_killed() -> None:
    starting, _ = advance(Watch(), Heard.TIME, 100.0, PATIENCE)

    _, order = advance(starting, Heard.TIME, 190.0, PATIENCE)

    assert order is Order.KILL


def test_early_ends_are_answered_more_and_more_slowly_and_a_steady_run_is_forgiven() -> None:
    watch, now, delays = Watch(), 0.0, []
    for _ in range(8):
        watch, _ = advance(watch, Heard.TIME, now, PATIENCE)
        watch, _ = advance(watch, Heard.ENDED, now, PATIENCE)
        delays.append(watch.due - now)
        now = watch.due
    watch, _ = advance(watch, Heard.TIME, now, PATIENCE)
    steady, _ = advance(watch, Heard.ENDED, now + 31, PATIENCE)

    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert steady.due == now + 32


def test_told_to_stop_it_asks_first_then_kills_and_then_it_is_over() -> None:
    ending, asked = advance(UP, Heard.STOP, 100.0, PATIENCE)
    killed, order = advance(ending, Heard.TIME, 120.0, PATIENCE)
    over, _ = advance(killed, Heard.ENDED, 121.0, PATIENCE)

    assert (asked, order) == (Order.TERMINATE, Order.KILL)
    assert over.phase is Phase.OVER


def test_a_restart_waits_for_nothing() -> None:
    ending, order = advance(UP, Heard.RESTART, 100.0, PATIENCE)
    waiting, _ = advance(ending, Heard.ENDED, 101.0, PATIENCE)

    assert (order, waiting.phase, waiting.due) == (Order.TERMINATE, Phase.WAITING, 101.0)


@given(st.lists(st.tuples(st.sampled_from(Heard), st.floats(0, 100)), max_size=40))
def test_whatever_is_heard_after_stop_nothing_is_ever_started(heard: list[tuple[Heard, float]]) -> None:
    watch, now = advance(UP, Heard.STOP, 100.0, PATIENCE)[0], 100.0
    for what, later in heard:
        now += later
        watch, order = advance(watch, what, now, PATIENCE)

        assert order is not Order.START
        assert watch.phase in (Phase.ENDING, Phase.OVER)


@given(st.lists(st.sampled_from(Heard), max_size=40))
def test_something_is_always_due_unless_it_is_over_or_the_process_must_end(heard: list[Heard]) -> None:
    watch = Watch()
    for now, what in enumerate(heard):
        watch, _ = advance(watch, what, float(now), PATIENCE)

        assert math.isfinite(watch.due) or watch.phase in (Phase.ENDING, Phase.OVER)


# -- a real one --------------------------------------------------------------------------------------------------------

SUPERVISOR = """
import sys
from pathlib import Path
from muster_agent.install.supervisor import Supervisor
from muster_agent.install.supervising import Patience
Supervisor((sys.executable, "-c", sys.argv[2]), Path(sys.argv[1]), Patience(watchdog_s=float(sys.argv[3]))).run()
"""
AGENT = """
import os, sys, time
from pathlib import Path
from muster_agent.io.notify import ServiceManager
manager = ServiceManager(os.environ)
manager.ready()
with open({seen!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
while True:
    time.sleep(0.2)
    {alive}
"""


def supervise(folder: Path, *, alive: bool, watchdog_s: float) -> "subprocess.Popen[bytes]":
    agent = AGENT.format(seen=str(folder / "seen"), alive="manager.alive()" if alive else "pass")
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder), agent, str(watchdog_s)])


def pids(folder: Path) -> list[int]:
    path = folder / "seen"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_killed_agent_comes_back_and_all_is_gone_after_sigterm(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, alive=True, watchdog_s=60)
    try:
        wait_for(lambda: len(pids(tmp_path)) == 1)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        wait_for(lambda: len(pids(tmp_path)) == 2)
        supervisor.terminate()

        assert supervisor.wait(30) == 0
        assert is_gone(pids(tmp_path)[1])
    finally:
        supervisor.kill()


def test_an_agent_that_hangs_is_replaced(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, alive=False, watchdog_s=1.0)
    try:
        wait_for(lambda: len(pids(tmp_path)) == 2)

        assert is_gone(pids(tmp_path)[0])
        assert "kill" in (tmp_path / "agent.log").read_text()
    finally:
        supervisor.terminate()
        supervisor.wait(30)


def test_an_agent_does_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, alive=True, watchdog_s=60)
    wait_for(lambda: len(pids(tmp_path)) == 1)

    supervisor.kill()
    supervisor.wait(10)

    wait_for(lambda: is_gone(pids(tmp_path)[0]))
