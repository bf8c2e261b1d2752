"""Rehearsals that the page asks for: another program, which may be missing, slow, refuse, or talk nonsense."""

import sys
from pathlib import Path

import msgspec
import pytest

from muster_controller.core.policy import Policy
from muster_controller.policy_document import parse_policy
from muster_controller.rehearsing import DEVICES_MAX, Rehearsal, Rehearsals, Unrehearsed, scaled
from muster_controller.web.proposal import outcome_rows

CHANCE = {"share": 0.5, "low": 0.2, "high": 0.8, "runs": 4, "of": 8}
NEVER = {"share": 0.0, "low": 0.0, "high": 0.3, "runs": 0, "of": 8}
SPREAD = {"median": 5.0, "p90": 9.0}
SUMMARY = {
    "name": "good",
    "title": "as good as the old one",
    "is_harmless": True,
    "runs": 8,
    "aborted": CHANCE,
    "paused": NEVER,
    "finished": CHANCE,
    "unfinished": NEVER,
    "exposed": SPREAD,
    "harmed": SPREAD,
    "to_finish_s": SPREAD,
    "to_stop_s": None,
}
ANSWER = msgspec.json.encode({"notes": ["a note"], "scenarios": [{"summary": SUMMARY, "results": []}]}).decode()


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_what_the_program_answers_is_read_and_kept(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    rehearsals = Rehearsals(program(f"open({str(asked)!r}, 'a').write('x'); print({ANSWER!r})"))

    found = [rehearsals.ask(Policy(), {"pi5": 40}, 0.1) for _ in range(2)]

    assert isinstance(found[0], Rehearsal)
    assert found[0] == found[1]
    assert asked.read_text() == "x"
    (row,) = outcome_rows(found[0])
    assert (row.stopped, row.is_well) == ("4 of 8", False)


def test_the_program_gets_the_policy_without_the_selector_and_the_mix_of_classes(tmp_path: Path) -> None:
    names = ("policy.yaml", "fleet.yaml")
    copy = f"import shutil; [shutil.copy(n, {str(tmp_path)!r}) for n in {names}]; print({ANSWER!r})"
    policy = Policy(selector="site=oslo", waves=(3, "50%"))

    Rehearsals(program(copy)).ask(policy, {"pi5": 30, "nuc": 10}, 0.25)

    assert parse_policy((tmp_path / "policy.yaml").read_bytes()) == Policy(waves=(3, "50%"))
    fleet = msgspec.json.decode((tmp_path / "fleet.yaml").read_bytes())
    assert fleet == {"classes": {"pi5": 30, "nuc": 10}, "offline": 0.25}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit('error: all devices are offline')", "all devices are offline"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('nonsense')", "not understood"),
        ("print('{}')", "not understood"),
    ],
)
def test_whatever_goes_wrong_is_said(text: str, said: str) -> None:
    found = Rehearsals(program(text)).ask(Policy(), {"pi5": 40}, 0.0)

    assert isinstance(found, Unrehearsed)
    assert said in found.why


def test_a_program_that_does_not_come_to_an_end_is_stopped() -> None:
    found = Rehearsals(program("import threading; threading.Event().wait()"), timeout_s=0.2).ask(
        Policy(), {"pi5": 4}, 0
    )

    assert isinstance(found, Unrehearsed)
    assert "stopped" in found.why


def test_a_program_that_is_not_there_is_said() -> None:
    found = Rehearsals(["/no/such/program"]).ask(Policy(), {"pi5": 4}, 0.0)

    assert isinstance(found, Unrehearsed)
    assert "could not be started" in found.why


def test_no_devices_need_no_program() -> None:
    assert isinstance(Rehearsals(["/no/such/program"]).ask(Policy(), {}, 0.0), Unrehearsed)


def test_a_large_fleet_is_rehearsed_as_a_small_one_of_the_same_mix() -> None:
    found = scaled({"pi5": 80_000, "nuc": 19_990, "rare": 10}, DEVICES_MAX)

    assert found == {"nuc": 100, "pi5": 400, "rare": 1}
    assert scaled({"pi5": 30}, DEVICES_MAX) == {"pi5": 30}
    assert len(scaled({f"class-{n}": 100 for n in range(2000)}, DEVICES_MAX)) == DEVICES_MAX
