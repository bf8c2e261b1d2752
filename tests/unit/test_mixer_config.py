"""What a mixer may be told: never less privacy than what is published."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from muster_controller.cli.mixer import app
from muster_controller.mixer.config import MixerConfig, check, parse_cohorts
from muster_controller.mixer.errors import MixerConfigInvalid
from muster_controller.mixer.folder import MixerFolder
from muster_controller.mixer.ledger import LEDGER_FILE, MixLedger
from muster_shared.ids import FleetId
from muster_shared.metrics import COHORTS, K_MIN, RHO_DAY

FLEET = FleetId("test")


def test_what_is_published_holds_without_any_option() -> None:
    config = check(MixerConfig("one", FLEET))

    assert (config.rho_day, config.k_min, len(config.cohorts)) == (RHO_DAY, K_MIN, COHORTS)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"rho_day": 0.11}, "never raised"),
        ({"rho_day": 0.0}, "never raised"),
        ({"rho_day": float("nan")}, "never raised"),
        ({"k_min": K_MIN - 1}, "promised"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"clock_speed": 0.0}, "clock"),
        ({"clock_speed": 1e6}, "clock"),
        ({"clock_speed": 60.0}, "clock-since"),
        ({"cohorts": ()}, "cohorts"),
        ({"cohorts": (COHORTS,)}, "cohorts"),
    ],
)
def test_what_would_weaken_it_or_means_nothing_is_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(MixerConfigInvalid, match=why):
        check(MixerConfig("one", FLEET, **changed))  # type: ignore[arg-type]  # One field each.


def test_more_privacy_may_be_asked_for() -> None:
    assert check(MixerConfig("one", FLEET, rho_day=0.01, k_min=100)).k_min == 100


@pytest.mark.parametrize(
    ("text", "cohorts"), [("0-3", (0, 1, 2, 3)), ("7", (7,)), ("8-9, 0-1,1", (0, 1, 8, 9)), ("0-15", tuple(range(16)))]
)
def test_cohorts_are_read(text: str, cohorts: tuple[int, ...]) -> None:
    assert parse_cohorts(text) == cohorts


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-16", "-1", "1-", "²", "0-9999999999", "1,,2"])
def test_what_is_no_list_of_cohorts_is_refused(text: str) -> None:
    with pytest.raises(MixerConfigInvalid, match="write 0-15"):
        parse_cohorts(text)


def test_the_command_refuses_a_weaker_budget_before_anything_runs(tmp_path: Path) -> None:
    MixerFolder.create(tmp_path / "one", "one")

    done = CliRunner().invoke(app, ["run", "--data", str(tmp_path / "one"), "--rho-day", "0.2"])

    assert done.exit_code == 1
    assert "never raised" in done.stderr
    assert not (tmp_path / "one" / LEDGER_FILE).exists()


def test_the_state_of_a_mixer_is_told_without_a_broker(tmp_path: Path) -> None:
    folder = MixerFolder.create(tmp_path / "one", "one")
    MixLedger(tmp_path / "one" / LEDGER_FILE).close()

    done = CliRunner().invoke(app, ["state", "--data", str(tmp_path / "one")])

    assert done.exit_code == 0, done.output
    assert folder.card().key_id in done.stdout
    assert "eps 2.45 a day and 15.9 in 30 days" in done.stdout
