"""The consent hook as operators write it: real programs, their exit codes, what they print, and how they misbehave."""

import json
import os
import time
from pathlib import Path

import pytest

from harness.asking import Program
from harness.fleet_of_one import MODEL, Agent, Fleet, Works, free_port, wait_until
from muster_agent.cli.program import main
from muster_agent.consent.hook import REASON_MAX, run_hook
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.assignment import Activation, Watch
from muster_shared.ids import FleetId, RolloutId
from muster_shared.messages import Step, StepReached

TIMEOUT_S = 10.0


def program(folder: Path, text: str) -> str:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_exit_code_0_goes_on(tmp_path: Path) -> None:
    answer = run_hook([program(tmp_path, "exit 0")], TIMEOUT_S)

    assert (answer.go_on, answer.fault) == (True, False)


@pytest.mark.parametrize("code", [75, 21])
def test_later_is_said_with_a_reason_in_the_first_line(tmp_path: Path, code: int) -> None:
    hook = program(tmp_path, f"echo '  the crane is moving  '; echo more; exit {code}")

    answer = run_hook([hook], TIMEOUT_S)

    assert (answer.go_on, answer.fault, answer.reason) == (False, False, "the crane is moving")


@pytest.mark.parametrize(
    ("text", "word"), [("exit 1", "exit code 1"), ("kill -9 $$", "signal 9"), ("echo fine; exit 2", "exit code 2")]
)
def test_anything_else_is_later_too_and_a_fault(tmp_path: Path, text: str, word: str) -> None:
    answer = run_hook([program(tmp_path, text)], TIMEOUT_S)

    assert (answer.go_on, answer.fault) == (False, True)
    assert word in answer.reason


def test_a_hook_that_is_not_there_or_cannot_be_run_is_later(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")

    for command in (str(tmp_path / "missing"), str(tmp_path / "text"), str(tmp_path)):
        answer = run_hook([command], TIMEOUT_S)

        assert (answer.go_on, answer.fault) == (False, True)
        assert "cannot be run" in answer.reason


def test_a_hook_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    hook = program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; sleep 600")

    began = time.monotonic()
    answer = run_hook([hook], 1.0)

    assert (answer.go_on, answer.fault) == (False, True)
    assert "1 s" in answer.reason
    assert time.monotonic() - began < 60
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: _is_gone(child))


def test_a_child_that_keeps_the_output_open_does_not_hold_up_the_answer(tmp_path: Path) -> None:
    hook = program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; echo later; exit 75")

    began = time.monotonic()
    answer = run_hook([hook], 300.0)

    assert answer.reason == "later"
    assert time.monotonic() - began < 60
    wait_until(lambda: _is_gone(int((tmp_path / "child").read_text())))


def test_a_hook_that_prints_without_end_is_cut_short(tmp_path: Path) -> None:
    endless = run_hook([program(tmp_path, "yes a-reason")], 1.0)
    long = run_hook([program(tmp_path, "head -c 2000000 /dev/zero | tr '\\0' x; exit 75")], TIMEOUT_S)

    assert "did not end" in endless.reason
    assert long.reason == "x" * REASON_MAX


def test_a_reason_is_one_printable_line_whatever_bytes_it_has(tmp_path: Path) -> None:
    hook = program(tmp_path, r"printf '\377\033[31mred\007 alert\n'; exit 75")

    answer = run_hook([hook], TIMEOUT_S)

    assert answer.reason.isprintable()
    assert "red alert" in answer.reason


def test_no_shell_looks_at_the_arguments(tmp_path: Path) -> None:
    hook = program(tmp_path, 'echo "$# $1 $2"; exit 75')

    answer = run_hook([hook, "$(touch /tmp/x); a b", "*"], TIMEOUT_S)

    assert answer.reason == "2 $(touch /tmp/x); a b *"


def test_the_command_shows_what_the_device_would_answer_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = program(tmp_path, '[ "$1" = download ] || { echo the crane is moving; exit 75; }')
    config = tmp_path / "agent.toml"
    config.write_text(
        'fleet = "f"\ndevice = "d"\ndevice_class = "c"\nbroker_url = "mqtt://127.0.0.1:1883"\n'
        f'data_dir = "{tmp_path}"\nbootstrap_root = "{tmp_path}/root.json"\ntimezone = "+02:00"\n'
        f'[http]\nlisten = "127.0.0.1:{free_port()}"\n[consent]\nhook = ["{hook}"]\nbusy_requests_per_s = 5\n'
    )

    codes = [
        main(["consent", "--config", str(config), "digits", "2.0.0", "--stage", stage, *more])
        for stage, more in (("activate", ["--json"]), ("download", []))
    ]

    told = capsys.readouterr().out
    answer, end = json.JSONDecoder().raw_decode(told)
    assert codes == [0, 0]
    assert (answer["go_on"], answer["reason"], answer["retry_s"]) == (False, "the crane is moving", 300.0)
    assert answer["timezone"] == "+02:00"
    assert answer["checks"][0] == {"rule": "requests", "found": "unknown", "later": False, "fault": False}
    assert "download digits 2.0.0: go on" in told[end:]


@pytest.mark.broker
def test_a_device_holds_up_a_rollout_by_its_hook_until_it_agrees(tmp_path: Path) -> None:
    works = Works.open(tmp_path / "works")
    may = tmp_path / "may"
    may.mkdir()
    hook = program(tmp_path, f'echo "$1 $2 $3" >> {tmp_path}/asked; [ -e {may}/$1 ] || {{ echo not yet; exit 75; }}')
    folder = tmp_path / "device"
    folder.mkdir()
    with start_broker(BrokerKind.AUTO, tmp_path / "broker", free_port()) as broker:
        broker.wait_ready(20.0)
        fleet = Fleet(works, broker, FleetId("asked"), folder)
        try:
            first, second = works.release("1.0.0", factor=2.0), works.release("2.0.0", factor=3.0)
            fleet.assign(1, first)
            fleet.wait_for_step(first, Step.COMMITTED)
            fleet.agent.stop()
            with (folder / "agent.toml").open("a") as configuration:
                configuration.write(f'timezone = "Asia/Kolkata"\n[consent]\nhook = ["{hook}"]\nretry_s = 10.0\n')
            fleet.agent = Agent.start(folder, broker_url=broker.url)
            watch = Watch(
                rollout=RolloutId("r1"),
                wave=1,
                window_s=0.5,
                window_max_s=0.5,
                activation=Activation(consent=True, defer_s_max=600.0),
            )

            fleet.assign(2, second, watch=watch)
            deferred = fleet.wait_for_step(second, Step.DEFERRED)
            (may / "download").touch()
            fleet.wait_for_step(second, Step.TESTING)
            wait_until(lambda: _deferred(fleet, "activate: not yet"))
            still = fleet.answer()
            (may / "activate").touch()
            fleet.wait_for_step(second, Step.COMMITTED)

            assert deferred.detail == "download: not yet"
            assert deferred.until is not None
            assert still == [2.0, 4.0]
            assert fleet.answer() == [3.0, 6.0]
            asked = set((tmp_path / "asked").read_text().splitlines())
            assert asked == {f"download {MODEL} 2.0.0", f"activate {MODEL} 2.0.0"}
            asking = Program(fleet.agent.port)
            assert asking.ask("GET", "/v1/status").json["device"]["timezone"] == "Asia/Kolkata"
            asking.close()
        finally:
            fleet.close()


def _deferred(fleet: Fleet, why: str) -> bool:
    bodies = [event.body for event in list(fleet.events.values())]
    return any(isinstance(body, StepReached) and body.step is Step.DEFERRED and body.detail == why for body in bodies)


def _is_gone(pid: int) -> bool:
    """Whether the process has ended, waited for by whoever adopted it or not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True
