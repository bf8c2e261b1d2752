"""What doctor makes of what it sees, by values; and of a disk that is full or is none."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from muster_agent.install.doctor import agent, host, identity, network
from muster_agent.install.doctor.finding import Finding, examine, ok
from muster_agent.install.health import Health

DAY_S = 86400.0
MIB = 2**20


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0.0, "ok"), (-29.0, "ok"), (45.0, "warn"), (-301.0, "fail"), (400 * DAY_S, "fail")]
)
def test_a_clock_is_judged_by_the_controllers(ahead_s: float, verdict: str) -> None:
    assert network.judge_clock(ahead_s).verdict == verdict


@pytest.mark.parametrize(
    ("now", "verdict"), [(-1.0, "fail"), (0.0, "ok"), (3.6 * DAY_S, "ok"), (6 * DAY_S, "warn"), (7 * DAY_S, "fail")]
)
def test_a_certificate_is_judged_by_its_dates(now: float, verdict: str) -> None:
    assert identity.judge_dates(0.0, 3.5 * DAY_S, 7 * DAY_S, now).verdict == verdict


@pytest.mark.parametrize(
    ("dates", "verdict"),
    [
        ({"root_history/1.root.json": (1, 5.0), "root_history/2.root.json": (2, 400 * DAY_S)}, "ok"),
        ({"root_history/1.root.json": (1, 400 * DAY_S), "root_history/2.root.json": (2, 5.0)}, "fail"),
        ({"root.json": (1, 400 * DAY_S), "timestamp.json": (9, 5.0)}, "fail"),
        ({"root.json": (1, 5 * DAY_S)}, "warn"),
        ({"timestamp.json": (9, 5 * DAY_S)}, "fail"),
    ],
)
def test_the_newest_root_counts_and_what_is_over_is_named(dates: dict[str, tuple[int, float]], verdict: str) -> None:
    assert identity.judge_trust(dates, 1000.0, verified=True).verdict == verdict


@pytest.mark.parametrize(
    ("free", "fsync_s", "verdict"),
    [(1000 * MIB, 0.01, "ok"), (100 * MIB, 0.01, "warn"), (10 * MIB, 0.01, "fail"), (1000 * MIB, 2.0, "warn")],
)
def test_a_disk_is_judged_by_room_and_speed(free: int, fsync_s: float, verdict: str) -> None:
    assert host.judge_disk(Path("/data"), free, fsync_s).verdict == verdict


def test_a_disk_that_takes_nothing_is_found_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from pathlib import Path\nfrom muster_agent.install.doctor.host import check_disk\n"
        "print(check_disk(Path(sys.argv[1])).verdict)"
    )
    full = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    (tmp_path / "file").touch()

    no_folder = host.check_disk(tmp_path / "file")
    not_writable = host.check_disk(Path("/proc"))
    fine = host.check_disk(tmp_path)

    assert full.stdout.strip() == "fail"
    assert (no_folder.verdict, not_writable.verdict) == ("fail", "fail")
    assert "ms" in fine.said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_agent_that_is_away_names_the_way_to_start_it() -> None:
    away = agent.judge_agent(Health(problem="refused"), False, None)
    serving = agent.judge_agent(
        Health(is_up=True, version="1.0", is_online=True, serving=("m 1",), assigned=("m",)), True, None
    )

    assert (away.verdict, serving.verdict) == ("fail", "ok")
    assert "muster-agent run" in away.todo


def test_the_probe_of_an_engine_runs_a_graph_and_names_one_that_is_missing() -> None:
    found = agent.check_engines(("onnxruntime",))
    none = agent.check_engines(())

    assert found.verdict == "ok", found
    assert none.verdict == "fail"


def test_a_check_that_hangs_or_falls_over_hides_no_other() -> None:
    never = threading.Event()

    def falls() -> Finding:
        raise RuntimeError("boom")

    findings = examine(
        {
            "hangs": lambda: ok("hangs", str(never.wait(60))),
            "falls": falls,
            "fine": lambda: ok("fine", "yes"),
        },
        within_s=0.5,
    )
    never.set()

    assert [(finding.check, finding.verdict) for finding in findings] == [
        ("hangs", "fail"),
        ("falls", "fail"),
        ("fine", "ok"),
    ]
    assert "boom" in findings[1].said
