"""`muster rollout simulate` as it is typed: found by the controller's command, answered, refused."""

import json
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from typer.testing import CliRunner

from muster_controller.cli import main

RUN = CliRunner()
FLEET = "classes: {pi5: 40, nuc: 20}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text("waves: [5, 25%]\n")
    (tmp_path / "fleet.yaml").write_text(FLEET)
    return tmp_path


def _simulate(folder: Path, *more: str, fleet: str = "fleet.yaml") -> tuple[int, str]:
    words = ["rollout", "simulate", str(folder / "policy.yaml"), "--fleet", str(folder / fleet), "--jobs", "1", *more]
    result = RUN.invoke(main.app, words)
    return result.exit_code, result.output


def test_it_stands_in_the_list_of_rollout_commands_and_not_among_all() -> None:
    group, everything = RUN.invoke(main.app, ["rollout", "--help"]), RUN.invoke(main.app, ["--help"])

    assert "│ simulate " in group.output
    assert "│ simulate " not in everything.output
    assert "│ demo " in everything.output
    assert "│ demo " not in group.output


def test_the_answer_as_json_is_whole_and_the_same_for_the_same_seed(folder: Path) -> None:
    code, text = _simulate(folder, "--runs", "3", "--json", "--seed", "9")
    found = json.loads(text)

    assert code == 0
    assert [each["summary"]["name"] for each in found["scenarios"]] == [
        *("good", "failing", "bricks", "slower", "one-class", "silent")
    ]
    assert all(len(each["results"]) == 3 for each in found["scenarios"])
    assert found["fleet"]["classes"] == {"nuc": 20, "pi5": 40}
    assert _simulate(folder, "--runs", "3", "--json", "--seed", "9")[1] == text


def test_harm_of_ones_own_is_tried_beside_a_good_release(folder: Path) -> None:
    own = ("--true-rate", "30%", "--latency", "+20%", "--class", "nuc", "--after-report-s", "5", "--runs", "2")

    code, text = _simulate(folder, *own)

    assert code == 0
    assert "failures 1 % -> 30 %" in text
    assert "on nuc only" in " ".join(text.split())
    assert "false abort" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--true-rate", "many"], "--true-rate"),
        (["--base-rate", "100%"], "below 100%"),
        (["--latency", "fast"], "--latency"),
        (["--class", "tpu"], "there are nuc, pi5"),
        (["--scenario", "meteor"], "choose of good"),
    ],
)
def test_an_option_that_says_nothing_is_refused(folder: Path, words: list[str], said: str) -> None:
    code, text = _simulate(folder, "--runs", "1", *words)

    assert code == 1
    assert said in " ".join(text.split())


def test_a_policy_that_cannot_be_is_refused_with_its_line(folder: Path) -> None:
    (folder / "policy.yaml").write_text("waves: [5]\nalpha: 2\n")

    code, text = _simulate(folder, "--runs", "1")

    assert code == 1
    assert "policy.yaml:2" in text


def test_without_a_fleet_the_controller_is_asked(folder: Path) -> None:
    nobody = "http://127.0.0.1:9"  # The discard port: nothing of ours ever listens there.

    result = RUN.invoke(main.app, ["--url", nobody, "rollout", "simulate", str(folder / "policy.yaml")])

    assert result.exit_code == 6
    assert "no controller answers" in result.output


def test_where_the_simulator_is_not_installed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "entry_points", lambda **_: EntryPoints([]))

    known = RUN.invoke(main.app, ["rollout", "simulate", "policy.yaml", "--runs", "5"])
    unknown = RUN.invoke(main.app, ["rollout", "dance"])
    listed = RUN.invoke(main.app, ["rollout", "--help"])

    assert known.exit_code == 1
    assert "pip install muster-simulator" in known.output
    assert unknown.exit_code == 2
    assert "simulate" not in listed.output


def test_a_command_with_a_dot_in_its_name_is_called_by_its_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("rollout.simulate", "muster_simulator.rehearsal.cli:simulate", main.PLUGINS)
    monkeypatch.setattr(main, "entry_points", lambda **_: EntryPoints([entry]))

    dotted = RUN.invoke(main.app, ["rollout.simulate", "--help"])
    grouped = RUN.invoke(main.app, ["rollout", "simulate", "--help"])

    assert dotted.exit_code == 2
    assert grouped.exit_code == 0
