"""What `muster-agent metrics` tells: what would leave, in words, what would not, and why."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest

from harness.metrics_device import BEGAN, DIGITS, FLEET, Broker, Device, in_memory, one
from muster_agent.cli.metrics import metrics_lines
from muster_agent.cli.program import main
from muster_agent.metrics.port import Release
from muster_agent.metrics.sending import choose, waits_for
from muster_agent.metrics.showing import Showing, Shown, showing
from muster_shared.metrics import DAY_S, HOUR_S, Kind

LABELS = ("zero", "one", "two", "three")


@pytest.fixture
def folder() -> Iterator[Path]:
    with in_memory() as found:
        yield found


def show(device: Device) -> Showing:
    return device.sending.inspect(
        lambda book, due, at: showing(
            book,
            due,
            at,
            fleet=FLEET,
            mixer=choose(device.mixers, ""),
            waits_for=waits_for(device.sending, device),
            random=Random(0),
            labels=lambda release: LABELS,
        )
    )


def after_an_hour(folder: Path, release: Release = DIGITS, broker: Broker | None = None) -> tuple[Device, Shown]:
    device = Device(folder, broker or Broker())
    device.until(BEGAN + HOUR_S, 600.0, lambda at: [one(5, release=release)])
    (window,) = (window for window in show(device).next if window.state == "waiting")
    return device, window


def test_the_window_that_is_shown_is_the_one_that_leaves(folder: Path) -> None:
    device, shown = after_an_hour(folder)

    device.until(BEGAN + HOUR_S + 1860, 60.0, lambda at: [])

    ((at, window),) = device.broker.arrived
    assert window.nonce == shown.nonce
    assert shown.earliest <= at <= shown.earliest + 60
    assert {shown.bytes} == device.broker.bytes
    assert shown.kinds["classes"] == {"three": 64}
    assert shown.inferences == 30


def test_kinds_that_do_not_leave_are_named_with_the_reason(folder: Path) -> None:
    some = frozenset({Kind.INPUTS, Kind.FEEDBACK})

    _, shown = after_an_hour(folder, replace(DIGITS, allow=some))

    assert set(shown.kinds) == {"inputs"}
    assert "metrics.allow" in shown.left_out["classes"]
    assert "nothing was counted" in shown.left_out["feedback"]


def test_the_running_hour_is_shown_as_it_would_be_now(folder: Path) -> None:
    device = Device(folder, Broker())
    device.until(BEGAN + 600, 600.0)

    (shown,) = show(device).next

    assert shown.state == "running"
    assert (shown.earliest, shown.latest) == (BEGAN + HOUR_S, BEGAN + HOUR_S + 1800)


def test_places_have_names_that_people_know(folder: Path) -> None:
    _, shown = after_an_hour(folder)

    assert shown.kinds["confidence"] == {"0.95-1.00": 64}
    assert shown.kinds["inputs"] == {"plain": 64}
    assert shown.kinds["drift"] == {"quiet": 64}


def test_people_read_what_it_is_what_waits_and_what_was_dropped(folder: Path) -> None:
    device, _ = after_an_hour(folder, broker=Broker(is_up=False))
    device.until(BEGAN + DAY_S + 3 * HOUR_S, 1800.0)

    said = "\n".join(metrics_lines(msgspec.to_builtins(show(device))))

    assert "sealed to the mixer" in said
    assert "not now: the broker is away" in said
    assert "waiting   2 windows of 1 hours and 2 days" in said
    assert "the day from 2025-11-08 00:00 UTC, waiting" in said
    assert "not in it  feedback" in said


def test_without_a_mixer_it_is_said_that_nothing_leaves(folder: Path) -> None:
    device = Device(folder, Broker(), mixers={})
    device.look([one(1)])

    told = show(device)

    assert told.mixer is None
    assert "mixer" in told.waits_for
    assert [window.bytes for window in told.next] == [None]


def test_where_no_agent_answers_the_journal_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, shown = after_an_hour(folder)
    device.restart()
    config = folder / "agent.toml"
    config.write_text(
        'fleet = "harbour"\ndevice = "crane-07"\ndevice_class = "pi5-cpu"\n'
        f'data_dir = "{folder}"\n[http]\nlisten = "127.0.0.1:1"\n'
    )

    code = main(["metrics", "--json", "--config", str(config)])
    answer = json.loads(capsys.readouterr().out)
    for_people = main(["metrics", "--config", str(config)])

    assert (code, for_people) == (0, 0)
    assert answer["running"] is False
    assert [window["nonce"] for window in answer["next"] if window["state"] == "waiting"] == [shown.nonce]
    assert "none answers" in capsys.readouterr().out


def test_where_nothing_was_counted_yet_the_command_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "agent.toml"
    config.write_text(
        'fleet = "harbour"\ndevice = "crane-07"\ndevice_class = "pi5-cpu"\n'
        f'data_dir = "{folder}"\n[http]\nlisten = "127.0.0.1:1"\n'
    )

    assert main(["metrics", "--config", str(config)]) == 3
    assert "start it first" in capsys.readouterr().err
