"""The mixer: windows in, noised sums out, and every count of what was not taken."""

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from harness.mixing import CELL, CONFIG, DAY_START, Stage, window
from muster_controller.mixer import mixer as mixer_module
from muster_controller.mixer.batching import DAY_WAITS_S, HOUR_CLOSES_S, OLD_S
from muster_shared import sealing
from muster_shared.metrics import DAY_S, HOUR_S, K_MIN, RHO_DAY, UNITS, Kind, cohort, pack

CLOSES = DAY_START + HOUR_S + HOUR_CLOSES_S
DAY_CLOSES = DAY_START + DAY_S + HOUR_CLOSES_S


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def hour(stage: Stage, number: int, **changed: object) -> None:
    stage.now = max(stage.now, DAY_START + HOUR_S + 600)
    stage.send(window(stage.rng, **changed) for _ in range(number))  # type: ignore[arg-type]  # The caller's.


def test_an_hour_is_published_once_with_the_sums_of_all_its_windows(stage: Stage) -> None:
    windows = [window(stage.rng) for _ in range(30)]
    stage.now = DAY_START + HOUR_S + 600
    expected: Counter[int] = Counter()
    for one in windows:
        expected.update({pack_index(one.units[Kind.CLASSES]): UNITS})

    stage.send(windows[:11])
    stage.restart()
    stage.send(windows[11:])
    early = stage.at(CLOSES - 1)
    (published,) = stage.at(CLOSES)
    again = stage.at(CLOSES + 7 * DAY_S)

    assert early == again == []
    assert published.cell == CELL
    assert (published.devices, published.late) == (30, False)
    assert published.sums[Kind.CLASSES] == tuple(expected[index] for index in range(10))


def pack_index(packed: bytes) -> int:
    return packed[0]  # Of a histogram with one place below 128: its gap.


def test_noise_is_on_every_place_of_every_kind_whatever_the_windows_held(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CONFIG.__class__("one", CONFIG.fleet))
    hour(stage, 20, units={Kind.CLASSES: {3: 64}})

    (published,) = stage.at(CLOSES)

    assert {kind: len(sums) for kind, sums in published.sums.items()} == {kind: CELL.dim(kind) for kind in Kind}
    assert published.sigma.keys() == published.sums.keys()
    noise = [one for kind in (Kind.CLASSES, Kind.FEEDBACK) for one in published.sums[kind]]
    noise[3] -= 20 * UNITS
    assert all(noise), "with a sigma of over a thousand, none of thirty is 0 by chance"
    assert published.sigma[Kind.CLASSES] == pytest.approx(1264.94, abs=0.01)


def test_a_release_without_classes_has_no_kind_that_needs_them(stage: Stage) -> None:
    cell = CELL.__class__(model=CELL.model, version=CELL.version, device_class="pi5")
    hour(stage, 20, cell=cell, units={Kind.DRIFT: {0: 64}})

    (published,) = stage.at(CLOSES)

    assert published.sums.keys() == {Kind.LATENCY, Kind.INPUTS, Kind.DRIFT}


def test_a_cell_below_the_minimum_is_suppressed_and_counted_and_costs_nothing(stage: Stage) -> None:
    hour(stage, K_MIN - 1)

    published = stage.at(CLOSES)

    assert published == []
    assert stage.counted() == {"windows": K_MIN - 1, "suppressed": K_MIN - 1}
    assert stage.mixer.state("k", 0.0).budgets == ()


def test_what_comes_twice_is_counted_once_also_after_a_restart(stage: Stage) -> None:
    one = window(stage.rng)
    stage.now = DAY_START + HOUR_S
    stage.send([one, one])
    stage.restart()

    stage.send([one])

    assert stage.counted() == {"windows": 1, "repeated": 2}


def test_what_comes_after_its_hour_was_closed_is_too_late(stage: Stage) -> None:
    hour(stage, 20)
    stage.at(CLOSES)

    hour(stage, 20)

    assert stage.counted() == {"windows": 20, "too_late": 20}
    assert stage.at(CLOSES + HOUR_S) == []


def test_what_the_broker_kept_while_the_mixer_was_away_is_taken_and_waited_for(stage: Stage) -> None:
    stage.now = CLOSES + 3 * HOUR_S

    tells = stage.send(window(stage.rng) for _ in range(20))
    stage.mixer.turn(settled=False)
    waiting = stage.outbox()
    (published,) = stage.at(stage.now + 60)

    assert tells
    assert waiting == []
    assert published.devices == 20


def test_what_does_not_open_or_is_of_no_time_or_of_another_mixer_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CONFIG.__class__("one", CONFIG.fleet, cohorts=(cohort(CELL),)))
    stage.now = DAY_START + HOUR_S
    elsewhere = CELL.__class__(model=CELL.model, version="2.0.0", device_class="pi5", classes=10)
    assert cohort(elsewhere) != cohort(CELL)
    windows = [
        window(stage.rng, cell=elsewhere),
        window(stage.rng, start=DAY_START + 4 * HOUR_S),
        window(stage.rng, start=DAY_START - 63 * DAY_S),
    ]
    sealed = [sealing.seal(one, stage.public) for one in windows]

    stage.mixer.take([(cohort(CELL), raw) for raw in [b"", b"{}", b"x" * 5000, *sealed]])
    stage.mixer.take([(cohort(elsewhere), sealed[0])])

    assert stage.counted() == {"refused": 6}, "what is on another mixer's topic is not ours to count"


def test_a_window_that_gives_more_than_it_has_is_refused(stage: Stage) -> None:
    hour(stage, 1, units={Kind.CLASSES: {0: UNITS, 1: 1}})

    assert stage.counted() == {"refused": 1}


def test_hours_of_a_day_and_the_day_itself_spend_the_budget_and_no_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CONFIG.__class__("one", CONFIG.fleet))
    one_class = {Kind.DRIFT: {0: 64}}
    for number in range(24):
        start = DAY_START + number * HOUR_S
        stage.now = start + HOUR_S
        stage.send(window(stage.rng, start=start, units=one_class) for _ in range(20))
        assert len(stage.at(start + HOUR_S + HOUR_CLOSES_S)) == 1
    for again in range(3):
        stage.send(window(stage.rng, length_s=DAY_S, units=one_class) for _ in range(20))
        (published,) = stage.at(DAY_CLOSES + again * DAY_S)
        assert published.late == (again > 0)

    (budget,) = stage.mixer.state("k", 0.0).budgets

    assert budget.rho_spent == pytest.approx(RHO_DAY)
    assert budget.rho_spent <= RHO_DAY


def test_a_spent_budget_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, CONFIG.__class__("one", CONFIG.fleet))
    hour(stage, 20, units={Kind.DRIFT: {0: 64}})
    stage.at(CLOSES)
    stage.restart(rho_day=0.004)

    stage.send(window(stage.rng, start=DAY_START + HOUR_S, units={Kind.DRIFT: {0: 64}}) for _ in range(20))
    published = stage.at(CLOSES + HOUR_S)

    assert published == []
    assert stage.counted()["out_of_budget"] == 1


def test_days_wait_until_enough_devices_have_sent_theirs_and_merge_after_a_week(stage: Stage) -> None:
    first = DAY_CLOSES + 20 * DAY_S
    stage.now = first
    stage.send(window(stage.rng, length_s=DAY_S) for _ in range(15))
    few = stage.at(first + DAY_S)
    stage.send(window(stage.rng, length_s=DAY_S) for _ in range(6))
    (together,) = stage.at(first + 2 * DAY_S)
    stage.send(window(stage.rng, length_s=DAY_S) for _ in range(7))
    stage.send(window(stage.rng, length_s=DAY_S, cell=msgspec.structs.replace(CELL, region="south")) for _ in range(13))
    waiting = stage.at(first + 4 * DAY_S)
    (merged,) = stage.at(first + 2 * DAY_S + DAY_WAITS_S)
    stage.send(window(stage.rng, length_s=DAY_S) for _ in range(3))
    stage.at(DAY_START + DAY_S + OLD_S)

    assert few == waiting == []
    assert (together.devices, together.late, together.cell) == (21, False, CELL)
    assert (merged.devices, merged.late, merged.cell.region) == (20, True, "")
    assert stage.counted() == {"windows": 44, "suppressed": 3}


def test_whoever_sends_without_end_fills_no_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer_module, "CELL_WINDOWS_MAX", 25)
    monkeypatch.setattr(mixer_module, "CELLS_MAX", 3)
    hour(stage, 20)

    hour(stage, 20)
    for number in range(5):
        hour(stage, 1, cell=msgspec.structs.replace(CELL, version=f"9.0.{number}"))

    assert stage.counted() == {"windows": 27, "refused": 18}
    assert stage.ledger.cells() == 3


def test_the_same_sums_are_never_drawn_twice_whatever_was_acknowledged(stage: Stage) -> None:
    hour(stage, 20)
    (published,) = stage.at(CLOSES)
    stage.mixer.acknowledged([published.batch])
    stage.restart()

    again = stage.at(CLOSES + HOUR_S)

    assert again == []
    assert stage.outbox() == []


def test_nothing_of_a_window_is_in_a_log(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    broken = window(stage.rng, units={Kind.CLASSES: {7: 65}})
    hour(stage, 25)
    stage.send([broken])
    stage.at(CLOSES)

    said = "".join(capsys.readouterr())

    for secret in ("digits", "pi5", "north", broken.nonce, pack({7: 64}).hex()):
        assert secret not in said
    assert "period_mixed" in said
