"""Verifying elsewhere: the same verdicts as here, whatever becomes of the process that gives them."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from harness.bundles import write_bundle
from muster_agent.errors import CheckFailed
from muster_agent.io.trust_check import Checks
from muster_agent.io.trust_process import CheckProcess
from muster_agent.io.trust_state import Checked, Envelope, Question, Saved, load
from muster_controller.registry.operator import init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import Assignment, AssignmentKeys, parse_keys
from muster_shared.bundle import target_path
from muster_shared.ids import DeviceId, FleetId, ModelName

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DIGITS = ModelName("digits")
WAIT_S = 20.0


class World:
    """An operator and a controller that have published one release."""

    def __init__(self, folder: Path) -> None:
        online = create_online_keys(folder / "data")
        offline = init_operator(folder / "operator", [DIGITS], online, NOW)
        self.repository = TufRepository(folder / "data")
        self.repository.accept_offline(offline.root, offline.targets, offline.keys, NOW)
        bundle = write_bundle(folder, DIGITS, 1)
        signed = sign_release(folder / "operator", bundle, None, NOW)
        self.repository.accept_release(signed.role, signed.metadata, (bundle / "bundle.json").read_bytes(), NOW)
        self.bootstrap = (folder / "operator/metadata/1.root.json").read_bytes()

    def question(self, folder: Path, *, without: str = "", saved: Saved | None = None, now: datetime = NOW) -> Question:
        messages = self.repository.trust_messages()
        return Question(
            folder=str(folder),
            bootstrap=self.bootstrap,
            saved=saved or Saved(),
            candidates={message.role: dict(message.files) for message in messages if message.role != without},
            now=now.timestamp(),
        )

    def assignment(self) -> bytes:
        assignment = Assignment(
            fleet=FleetId("f"), device=DeviceId("d"), counter=1, issued_at=0.0, expires_at=1.0, models=()
        )
        return self.repository.sign_assignment(assignment)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[CheckProcess]:
    checks = CheckProcess(answer_s=60.0, linger_s=60.0)
    yield checks
    checks.close()


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def is_gone(pid: int) -> bool:
    """Return whether it has ended, waited for or not: an orphan's new parent may be slow."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- the same verdicts -----------------------------------------------------------------------------------------------


def test_what_holds_is_verified_kept_and_told(world: World, elsewhere: CheckProcess, tmp_path: Path) -> None:
    there = elsewhere.check(world.question(tmp_path / "there"))
    here = Checks().check(world.question(tmp_path / "here"))

    assert there == here
    assert there.failure is None
    assert set(there.saved.targets or {}) == {target_path(DIGITS, "1.0.0")}
    assert load(tmp_path / "there") == there.saved


@pytest.mark.parametrize(
    ("without", "days", "kind"),
    [("snapshot", 0, "MetadataIncomplete"), ("", 4000, "MetadataExpired")],
)
def test_what_does_not_hold_fails_there_as_it_fails_here(
    world: World, elsewhere: CheckProcess, tmp_path: Path, without: str, days: int, kind: str
) -> None:
    now = NOW + timedelta(days=days)

    there = elsewhere.check(world.question(tmp_path / "there", without=without, now=now))
    here = Checks().check(world.question(tmp_path / "here", without=without, now=now))

    assert there == here
    assert there.failure is not None
    assert there.failure.kind == kind == type(there.failure.error()).__name__


def test_an_assignment_is_opened_by_its_own_keys_alone(world: World, elsewhere: CheckProcess, tmp_path: Path) -> None:
    checked = elsewhere.check(world.question(tmp_path))
    keys = parse_keys(checked.saved.keys.encode())
    signed = world.assignment()

    opened = elsewhere.open(Envelope(raw=signed, keys=keys))
    forged = elsewhere.open(Envelope(raw=signed, keys=AssignmentKeys(keys={})))

    assert opened.assignment is not None
    assert opened.assignment.counter == 1
    assert forged.failure is not None
    assert forged.failure.kind == "AssignmentForged"


# -- the process -----------------------------------------------------------------------------------------------------


def test_a_burst_is_one_process_and_it_does_not_stay(world: World, tmp_path: Path) -> None:
    checks = CheckProcess(answer_s=60.0, linger_s=0.5)
    checked = checks.check(world.question(tmp_path))
    pid = checks.pid
    assert pid is not None
    checks.check(world.question(tmp_path, saved=checked.saved))
    assert checks.pid in (pid, None)

    deadline = time.monotonic() + WAIT_S
    while checks.pid is not None and time.monotonic() < deadline:
        time.sleep(0.02)

    assert checks.pid is None
    assert is_gone(pid)
    assert isinstance(checks.check(world.question(tmp_path, saved=checked.saved)), Checked)
    checks.close()


def test_a_process_that_hangs_is_killed(world: World, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    checks = CheckProcess(
        python(f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"), answer_s=5.0
    )

    with pytest.raises(CheckFailed, match="TimeoutError"):
        checks.check(world.question(tmp_path / "trust"))

    assert checks.pid is None
    assert is_gone(int(told.read_text()))


def test_closing_does_not_wait_for_an_answer(world: World, tmp_path: Path) -> None:
    checks = CheckProcess(python("import time; time.sleep(600)"), answer_s=600.0)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            checks.check(world.question(tmp_path))
        except CheckFailed as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    deadline = time.monotonic() + WAIT_S
    while checks.pid is None and time.monotonic() < deadline:
        time.sleep(0.02)

    checks.close()

    asking.join(WAIT_S)
    assert not asking.is_alive()
    assert len(failed) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "EOFError"),
        (b"\xff\xff\xff\xff", "limit"),
        (b"\0\0\0\1\xc1", "DecodeError"),
        (b"\0\0\0\7{", "EOFError"),
    ],
)
def test_a_process_that_talks_nonsense_is_not_believed(world: World, tmp_path: Path, answer: bytes, said: str) -> None:
    checks = CheckProcess(
        python(
            "import socket; line = socket.socket(fileno=0)\n"
            f"line.sendall({answer!r}); line.shutdown(socket.SHUT_WR)\n"
            "while line.recv(1 << 16): pass"
        ),
        answer_s=WAIT_S,
    )

    with pytest.raises(CheckFailed, match=said):
        checks.check(world.question(tmp_path))

    assert checks.pid is None


def test_a_process_that_cannot_start_is_told_with_its_exit_code(world: World, tmp_path: Path) -> None:
    checks = CheckProcess(python("import sys; sys.exit(3)"), answer_s=WAIT_S)

    with pytest.raises(CheckFailed, match="exit code 3"):
        checks.check(world.question(tmp_path))

    with pytest.raises(CheckFailed, match="exit code None"):
        CheckProcess(["/nowhere/python"]).check(world.question(tmp_path))


def test_after_a_crash_the_next_question_is_answered(world: World, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    checks = CheckProcess(
        python(
            f"import os, pathlib, sys; crashed = pathlib.Path({str(crashed)!r})\n"
            "if not crashed.exists(): crashed.touch(); os.abort()\n"
            "os.execv(sys.executable, [sys.executable, '-P', '-m', 'muster_agent.io.trust_process'])"
        ),
        answer_s=60.0,
    )
    with pytest.raises(CheckFailed):
        checks.check(world.question(tmp_path / "trust"))

    checked = checks.check(world.question(tmp_path / "trust"))

    assert checked.failure is None
    checks.close()


def test_a_process_whose_agent_is_gone_ends(world: World, tmp_path: Path) -> None:
    """The agent is killed while the process lingers: end of file is all that it hears."""
    agent = subprocess.run(
        python(
            "import os\n"
            "from muster_agent.io.trust_process import CheckProcess\n"
            "from muster_agent.io.trust_state import Question, Saved\n"
            "checks = CheckProcess(answer_s=60.0, linger_s=600.0)\n"
            f"folder = {str(tmp_path)!r}\n"
            "checks.check(Question(folder=folder, bootstrap=b'', saved=Saved(), candidates={}, now=0.0))\n"
            "print(checks.pid, flush=True)\n"
            "os.kill(os.getpid(), 9)"
        ),
        capture_output=True,
        check=False,
        timeout=60,
    )
    pid = int(agent.stdout)

    deadline = time.monotonic() + WAIT_S
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)

    assert is_gone(pid)


def test_the_agent_imports_nothing_that_only_a_check_needs() -> None:
    """Megabytes that a device would hold for as long as it runs; see docs/decisions/0008."""
    source = (
        "import sys, muster_agent.daemon\n"
        "print(sorted(set(sys.modules) & {'tuf', 'securesystemslib', 'cryptography', 'urllib3', 'urllib.request',"
        " 'http.client', 'onnxruntime', 'openvino'}))"
    )

    done = subprocess.run(python(source), capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"
