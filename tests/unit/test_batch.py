"""One batch job against an agent that is busy, goes away and comes back: what is written is what an easy run writes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.batch import journal
from muster_agent.batch.carriers import Outcome
from muster_agent.batch.encoders import encoder
from muster_agent.batch.errors import BatchError, Busy, JobInvalid, Lost, Moved, RowsRefused, Unfinished
from muster_agent.batch.journal import Binding
from muster_agent.batch.mapping import Column, Feed
from muster_agent.batch.output import FileOutput
from muster_agent.batch.run import Done, Job, Run
from muster_agent.batch.sources import ArraySource
from muster_agent.engines.port import Array

ROWS = 103
SHAPE = (4,)
FEED = Feed("x", np.dtype(np.float32), SHAPE, ("x",))
INPUTS = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
NEVER = ROWS + 1
FORMATS = ("npy", "csv", "jsonl")


class VirtualClock:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


class Agent:
    """Doubles what it is given, through memory that it reuses, and fails as the script says."""

    def __init__(
        self,
        script: Iterable[type[BatchError] | None] = (),
        digest: Callable[[int], str] = lambda at: "d" * 64,
    ) -> None:
        self._script = iter(script)
        self._digest = digest
        self.asked = 0
        self.connections = 0

    def connect(self) -> "Connection":
        self.connections += 1
        return Connection(self)

    def fail_or_not(self) -> None:
        error = next(self._script, None)
        if error is not None:
            raise error("so says the script")

    def answer(self, tensor: Array) -> Outcome:
        self.asked += len(tensor)
        return Outcome({"y": tensor * np.float32(2)}, "1.0.0", self._digest(self.asked))


class Connection:
    name = "a script"

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._slots: dict[int, Array] = {}
        self._begun: set[int] = set()

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        assert part not in self._begun, "a part is begun again only after its end"
        self._slots[part] = tensors["x"].copy()
        assert len(self._slots[part]) == rows
        self._begun.add(part)

    def end(self, part: int) -> Outcome:
        self._begun.remove(part)
        self._agent.fail_or_not()
        return self._agent.answer(self._slots[part])

    def close(self) -> None:
        self._slots.clear()


def binding(**other: object) -> Binding:
    fields: dict[str, object] = {
        "source": "s", "model": "m", "version": "1.0.0", "digest": "d" * 64, "mapping": "x", "output": "o",
        "rows": ROWS, "rows_per_request": 8,
    }  # fmt: skip
    return Binding(**{**fields, **other})  # type: ignore[arg-type]  # The fields of a Binding.


def run(
    out: Path,
    agent: Agent,
    *,
    restart: bool = False,
    stop_at: int = NEVER,
    wait_s: float = 60.0,
    any_version: bool = False,
    watch: Callable[[int], None] = lambda rows: None,
) -> Done:
    """Run the job; be interrupted when `stop_at` rows are written."""
    columns = [Column("y", np.dtype(np.float32), SHAPE)]
    output = Prompt(out, encoder(out, columns, ROWS), binding(digest="" if any_version else "d" * 64), restart=restart)
    job = Job(
        source=ArraySource({"x": INPUTS}, "s"),
        feeds=(FEED,),
        keep=(),
        outputs=("y",),
        rows=ROWS,
        rows_per_request=8,
        parts=3,
        digest="" if any_version else "d" * 64,
        wait_s=wait_s,
    )

    clock = VirtualClock()

    def advanced(rows: int) -> None:
        clock.at_s += 0.2  # A checkpoint every three answers.
        watch(rows)
        if rows >= stop_at:
            raise Interrupted

    try:
        return Run(job, output, agent.connect, clock, advanced).execute()
    finally:
        output.close()


class Prompt(FileOutput):
    """Every checkpoint is on disk when it returns, so that pictures of the folder are those of one moment."""

    def checkpoint(self, rows: int, spans: tuple[journal.Span, ...], *, wait: bool) -> bool:
        return super().checkpoint(rows, spans, wait=True)


class Interrupted(BaseException):
    """Somebody pressed a key."""


@pytest.fixture(params=FORMATS)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"out.{request.param}"


@pytest.fixture
def expected(out: Path, tmp_path: Path) -> bytes:
    easy = tmp_path / f"easy{out.suffix}"
    run(easy, Agent())
    return easy.read_bytes()


def test_a_job_writes_the_answers_in_the_order_of_the_rows(tmp_path: Path) -> None:
    done = run(tmp_path / "out.npy", Agent())

    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), INPUTS * 2)
    assert (done.rows, done.repeated) == (ROWS, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy"]


@settings(max_examples=60, deadline=None)
@given(script=st.lists(st.sampled_from([None, None, Busy, Lost]), max_size=40))
def test_whatever_the_agent_does_the_answers_are_the_same(
    script: list[type[BatchError] | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("job") / "out.npy"

    run(out, Agent(script))

    np.testing.assert_array_equal(np.load(out), INPUTS * 2)


def test_an_interrupted_job_goes_on_and_ends_in_the_same_bytes(out: Path, expected: bytes) -> None:
    for stop_at in (8, 40, 41, 96):
        with pytest.raises(Interrupted):
            run(out, Agent(), stop_at=stop_at)
        assert not out.exists()

    done = run(out, Agent())

    assert out.read_bytes() == expected
    assert done.rows == ROWS


def test_a_kill_at_any_answer_costs_nothing_but_time(out: Path, expected: bytes, tmp_path: Path) -> None:
    pictures: list[dict[str, bytes]] = []

    def picture(_: int) -> None:
        pictures.append({path.name: path.read_bytes() for path in out.parent.iterdir() if path.name.startswith("out")})

    run(out, Agent(), watch=picture)

    resumed = set()
    for number, found in enumerate(pictures):
        folder = tmp_path / f"after-{number}"
        folder.mkdir()
        for name, content in found.items():
            (folder / name).write_bytes(content)
        agent = Agent()
        run(folder / out.name, agent)
        assert (folder / out.name).read_bytes() == expected
        resumed.add(ROWS - agent.asked)
    assert len(pictures) > 10
    assert len(resumed) > 2, "the journal was never ahead of its start"


@pytest.mark.parametrize("torn", [0, 1, 7, 1000])
def test_what_was_not_told_of_in_the_journal_is_cut_off(out: Path, expected: bytes, torn: int) -> None:
    with pytest.raises(Interrupted):
        run(out, Agent(), stop_at=48)
    with out.with_name(out.name + ".part").open("ab") as part:
        part.write(b"x" * torn)

    run(out, Agent())

    assert out.read_bytes() == expected


def test_a_kill_between_the_rename_and_the_end_of_the_journal_is_seen_as_the_end(out: Path, expected: bytes) -> None:
    with pytest.raises(Interrupted):
        run(out, Agent(), stop_at=ROWS)  # All rows are on disk, and nothing is renamed yet.
    out.with_name(out.name + ".part").rename(out)
    agent = Agent()

    run(out, agent)

    assert out.read_bytes() == expected
    assert agent.asked == 0
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("out")] == [out.name]


def test_rows_that_were_on_disk_and_are_gone_are_not_made_up(out: Path) -> None:
    with pytest.raises(Interrupted):
        run(out, Agent(), stop_at=48)
    out.with_name(out.name + ".part").write_bytes(b"")

    with pytest.raises(JobInvalid, match="--restart"):
        run(out, Agent())


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("source", "other", "input file has changed"),
        ("digest", "e" * 64, "release 1.0.0"),
        ("mapping", "z", "columns"),
        ("output", "p", "output"),
        ("rows_per_request", 16, "--rows 8"),
    ],
)
def test_a_job_does_not_go_on_as_another(field: str, value: object, told: str) -> None:
    begun = journal.Progress(binding=binding(), rows=8, length=0)

    with pytest.raises(Moved, match=told):
        journal.check(begun, binding(**{field: value}))


def test_an_output_that_is_there_is_replaced_only_when_told_so(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"precious")

    with pytest.raises(JobInvalid, match="--restart"):
        run(out, Agent())
    assert out.read_bytes() == b"precious"
    run(out, Agent(), restart=True)

    assert len(np.load(out)) == ROWS


def test_two_jobs_do_not_write_the_same_output(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    columns = [Column("y", np.dtype(np.float32), SHAPE)]
    first = FileOutput(out, encoder(out, columns, ROWS), binding(), restart=False)
    try:
        with pytest.raises(JobInvalid, match="another batch job"):
            run(out, Agent())
    finally:
        first.close()


def test_an_agent_that_stays_away_ends_the_job_and_keeps_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    script: Sequence[type[BatchError] | None] = [None] * 5 + [Lost] * 10_000

    with pytest.raises(Unfinished, match="40 of 103 rows"):
        run(out, Agent(script), wait_s=10.0)
    agent = Agent()
    run(out, agent)

    assert agent.asked == ROWS - 40
    np.testing.assert_array_equal(np.load(out), INPUTS * 2)


def test_another_release_in_the_middle_stops_the_job_before_its_first_row(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"

    with pytest.raises(Moved, match="took over at row 48"):
        run(out, Agent(digest=lambda at: ("d" if at <= 48 else "e") * 64))

    found = journal.read(journal.journal_path(out))
    assert found is not None
    assert found.rows == 48


def test_any_version_goes_on_and_says_which_rows_are_whose(tmp_path: Path) -> None:
    done = run(tmp_path / "out.npy", Agent(digest=lambda at: ("d" if at <= 48 else "e") * 64), any_version=True)

    assert [(span.start, span.stop, span.digest[0]) for span in done.spans] == [(0, 48, "d"), (48, ROWS, "e")]


def test_refused_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(RowsRefused, match="rows 8 to 15"):
        run(tmp_path / "out.npy", Agent([None, RowsRefused]))
