"""The journal: state and reports are both there, or neither, also when the process is killed in the middle."""

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from muster_agent.core.state import (
    Deferral,
    DeviceState,
    ModelState,
    Phase,
    Settled,
    Slots,
    Stage,
    Tried,
    Update,
)
from muster_agent.errors import JournalFailed
from muster_agent.io.journal import SqliteJournal
from muster_agent.ports import Journal
from muster_shared.assignment import Activation, MaintenanceWindow, Trial, Watch
from muster_shared.bundle import digest
from muster_shared.ids import DeviceId, EventId, FleetId, ModelName, RolloutId
from muster_shared.messages import (
    AssignmentRefused,
    Event,
    EventBody,
    FaultSeen,
    OutcomeReported,
    Refusal,
    ReleaseRef,
    Step,
    StepReached,
)

RELEASE = ReleaseRef(
    model=ModelName("digits"), version="1.2.0", release=3, bundle_sha256=digest(b"bundle"), bundle_length=900
)
KILLS = 12

# Commits states and events without end: state n goes with event n, and event n - 20 is forgotten.
WRITER = """
import sys
from pathlib import Path
from muster_agent.core.state import DeviceState, Settled
from muster_agent.io.journal import SqliteJournal
from muster_shared.messages import Event, FaultSeen

journal = SqliteJournal(Path(sys.argv[1]))
saved = journal.load()
counter = 0 if saved is None else saved.counter
print("ready", flush=True)
while True:
    counter += 1
    body = FaultSeen(model=None, detail="x" * 2000)
    journal.commit(
        DeviceState("harbour", "crane-7", counter=counter),
        [Event(id=f"e{counter}", device="crane-7", at=1.0, body=body)],
    )
    print(counter, flush=True)
    if counter > 20:
        journal.forget([f"e{counter - 20}"])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(path)
    yield journal
    journal.close()


def test_a_new_journal_is_empty(journal: Journal) -> None:
    assert journal.load() is None
    assert list(journal.pending(10)) == []


def test_state_and_events_come_back_as_they_were(journal: SqliteJournal, path: Path) -> None:
    state, events = full_state(), [event(index, body) for index, body in enumerate(every_body())]

    journal.commit(state, events)
    journal.close()
    again = SqliteJournal(path)

    assert again.load() == state
    assert list(again.pending(100)) == events
    again.close()


def test_a_state_from_before_keys_were_kept_is_loaded_whole(journal: SqliteJournal, path: Path) -> None:
    journal.commit(full_state(), [])
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE state SET body = CAST(json_remove(body, '$.keys') AS BLOB)")
    database.close()

    again = SqliteJournal(path)

    assert again.load() == replace(full_state(), keys={})
    again.close()


def test_pending_events_come_oldest_first_until_they_are_forgotten(journal: Journal) -> None:
    for index in range(5):
        journal.commit(full_state(), [event(index)])

    journal.forget([EventId("e0"), EventId("e3"), EventId("never-was")])

    assert [one.id for one in journal.pending(2)] == ["e1", "e2"]
    assert [one.id for one in journal.pending(9)] == ["e1", "e2", "e4"]


def test_an_event_is_kept_once(journal: Journal) -> None:
    journal.commit(full_state(), [event(1)])
    journal.commit(full_state(), [event(1)])

    assert len(journal.pending(9)) == 1


def test_a_full_outbox_drops_steps_first_then_faults_and_outcomes_last(path: Path) -> None:
    journal = SqliteJournal(path, outbox_events_max=100)
    outcomes = [event(1000 + index, outcome()) for index in range(80)]
    faults = [event(2000 + index, FaultSeen(model=None, detail="")) for index in range(15)]
    journal.commit(full_state(), [*outcomes, *faults])

    for index in range(60):
        journal.commit(full_state(), [event(index, step())])
    with_steps = [one.body for one in journal.pending(1000)]
    journal.commit(full_state(), [event(3000 + index, outcome()) for index in range(100)])
    without = [one.body for one in journal.pending(1000)]

    assert sum(isinstance(body, OutcomeReported) for body in with_steps) == 80
    assert sum(isinstance(body, FaultSeen) for body in with_steps) == 15
    assert {type(body) for body in without} == {OutcomeReported}
    assert len(without) == 100
    assert journal.dropped == 80 + 15 + 60
    journal.close()


def test_the_newest_steps_are_those_that_stay(path: Path) -> None:
    journal = SqliteJournal(path, outbox_events_max=200)

    for index in range(500):
        journal.commit(full_state(), [event(index, step())])

    kept = [one.id for one in journal.pending(1000)]
    assert kept == [f"e{index}" for index in range(300, 500)]
    journal.close()


def test_a_commit_that_fails_leaves_nothing_of_it(journal: SqliteJournal, path: Path) -> None:
    journal.commit(full_state(), [event(1)])
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA max_page_count = {other.execute('PRAGMA page_count').fetchone()[0]}")
    journal._database.execute(f"PRAGMA max_page_count = {other.execute('PRAGMA page_count').fetchone()[0]}")

    large = [event(index, FaultSeen(model=None, detail="x" * 5000)) for index in range(10, 40)]
    with pytest.raises(JournalFailed):
        journal.commit(DeviceState(FleetId("f"), DeviceId("d"), counter=99), large)
    other.close()

    assert journal.load() == full_state()
    assert [one.id for one in journal.pending(100)] == ["e1"]


@pytest.mark.parametrize("damage", ["garbage", "cut", "overwritten", "unreadable state"])
def test_a_damaged_journal_is_set_aside_and_an_empty_one_begins(path: Path, damage: str) -> None:
    journal = SqliteJournal(path)
    journal.commit(full_state(), [event(index) for index in range(300)])
    journal.close()
    raw = path.read_bytes()
    match damage:
        case "garbage":
            path.write_bytes(b"not a database at all" * 500)
        case "cut":
            path.write_bytes(raw[: len(raw) // 2])
        case "overwritten":
            path.write_bytes(raw[:4096] + bytes(len(raw) - 4096))
        case _:
            with sqlite3.connect(path) as database:
                database.execute("UPDATE state SET body = 'x'")
            database.close()

    fresh = SqliteJournal(path)
    fresh.commit(full_state(), [])

    assert path.with_name("journal.sqlite.damaged").exists()
    assert fresh.load() == full_state()
    assert list(fresh.pending(10)) == []
    fresh.close()


def test_an_event_of_another_version_does_not_cost_the_state(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.commit(full_state(), [event(1), event(2)])
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("""UPDATE outbox SET body = '{"v": 9}' WHERE id = 'e1'""")
    database.close()

    again = SqliteJournal(path)

    assert again.load() == full_state()
    assert [one.id for one in again.pending(9)] == ["e2"]
    again.close()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalFailed):
        SqliteJournal(tmp_path / "missing" / "journal.sqlite")


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_journal(path: Path) -> None:
    rng = random.Random(20)
    acknowledged = 0

    for _ in range(KILLS):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.15))
        writer.kill()
        lines = [line for line in writer.stdout.read().split("\n")[:-1] if line]
        writer.wait()
        acknowledged = max([acknowledged, *map(int, lines)])

        journal = SqliteJournal(path)
        state, events = journal.load(), journal.pending(1000)
        journal.close()

        committed = 0 if state is None else state.counter
        assert acknowledged <= committed <= acknowledged + 1
        numbers = {int(one.id.removeprefix("e")) for one in events}
        assert max(numbers, default=0) == committed
        assert numbers >= set(range(max(1, committed - 19), committed + 1))
        assert not path.with_name("journal.sqlite.damaged").exists()
        acknowledged = committed


def test_an_update_that_waits_comes_back_as_it_was(journal: SqliteJournal, path: Path) -> None:
    windows = (MaintenanceWindow(days=(6,), start_minute=120, minutes=60),)
    activation = Activation(windows=windows, consent=True, defer_s_max=3600.0, trial=Trial(required=True))
    watch = Watch(rollout=RolloutId("r1"), wave=2, window_s=10, window_max_s=60, attempt=3, activation=activation)
    update = Update(
        RELEASE,
        watch,
        Phase.READY,
        began_at=5.0,
        deadline_at=9.0,
        download_at=8.0,
        asking=Stage.ACTIVATE,
        deferral=Deferral("activate: busy", 6.0, 7.0, "activate: busy", 6.0),
        deferred_s=1.5,
        aside=True,
        tried=Tried(50, 1, 2.0, "50 live inputs"),
        latency_ms_p95_before=1.0,
    )
    settled = Settled(RELEASE.bundle_sha256, RolloutId("r0"), 1, False, attempt=2)
    model = ModelState(Slots(), update, settled, failed=RELEASE)
    state = DeviceState(FleetId("harbour"), DeviceId("crane-7"), models={RELEASE.model: model})

    journal.commit(state, [])
    journal.close()
    again = SqliteJournal(path)

    assert again.load() == state
    again.close()


def test_the_state_of_an_agent_before_this_one_is_read(journal: SqliteJournal, path: Path) -> None:
    journal.commit(full_state(), [])
    journal.close()
    with sqlite3.connect(path) as database:
        (body,) = database.execute("SELECT body FROM state").fetchone()
        old = msgspec.json.decode(body)
        model = old["models"]["digits"]
        del model["failed"], model["settled"]["attempt"], model["update"]["watch"]["activation"]
        for field in ("asking", "deferral", "deferred_s", "aside", "cleared", "tried", "download_at", "trying_from"):
            del model["update"][field]
        database.execute("UPDATE state SET body = ?", (msgspec.json.encode(old),))
    database.close()

    again = SqliteJournal(path)

    assert again.load() == full_state()
    again.close()


def test_the_state_is_json_that_another_version_can_read(journal: SqliteJournal, path: Path) -> None:
    journal.commit(full_state(), [])

    with sqlite3.connect(path) as database:
        (body,) = database.execute("SELECT body FROM state").fetchone()
    database.close()

    assert msgspec.json.decode(body)["models"]["digits"]["update"]["phase"] == "probation"


def full_state() -> DeviceState:
    watch = Watch(rollout=RolloutId("r1"), wave=2, window_s=10, window_max_s=60)
    update = Update(RELEASE, watch, Phase.PROBATION, began_at=5.0, deadline_at=9.0, window_from=6.0, boots=1)
    models = {
        RELEASE.model: ModelState(
            Slots(RELEASE, None), update, Settled(RELEASE.bundle_sha256, RolloutId("r0"), 1, False), "it was slow"
        )
    }
    return DeviceState(FleetId("harbour"), DeviceId("crane-7"), 7, digest(b"assignment"), models, {"k1": 3, "k0": 7})


def event(index: int, body: EventBody | None = None) -> Event:
    return Event(id=EventId(f"e{index}"), device=DeviceId("crane-7"), at=1.0 + index, body=body or step())


def every_body() -> list[EventBody]:
    refused = AssignmentRefused(refusal=Refusal.REPLAYED, counter=3, detail="it is old")
    return [step(), outcome(), refused, FaultSeen(model=RELEASE.model, detail="rot")]


def step() -> StepReached:
    return StepReached(release=RELEASE, step=Step.FAILED, refusal=Refusal.TAMPERED, detail="…")


def outcome() -> OutcomeReported:
    return OutcomeReported(release=RELEASE, rollout=RolloutId("r1"), wave=1, good=True, reason="as claimed")
