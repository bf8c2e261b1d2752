"""The audit log's chain, checkpoints and file: whatever is done to them is found, and where it was done is said."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import muster_controller
from muster_controller.acting import CONTROLLER, Acting, act_as, acting
from muster_controller.audit import checkpoint as checkpoints
from muster_controller.audit import export
from muster_controller.audit.audited import DEVICE_DRIVEN, action_of, entry, is_audited
from muster_controller.audit.chain import (
    BEGIN,
    BREAKS_MAX,
    Anchor,
    Ended,
    Flaw,
    Garbled,
    Item,
    Line,
    Report,
    Stored,
    chained,
    link,
    verify,
)
from muster_controller.audit.checkpoint import Checkpoint, CheckpointInvalid, Signer, open_signer
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import RolloutState
from muster_controller.ports import Note

DOCUMENT = Path(__file__).parents[2] / "docs" / "audit.md"
WORDS = st.text(max_size=8)
LINES = st.builds(
    Line,
    ordinal=st.just(0),
    at=st.floats(0, 2e9),
    actor=WORDS,
    action=WORDS,
    subject=WORDS,
    detail=WORDS,
    reason=WORDS,
    request_id=WORDS,
)
FIELDS = ("at", "actor", "action", "subject", "detail", "reason", "request_id")


def chain(lines: Sequence[Line]) -> list[Stored]:
    found: list[Stored] = []
    last = BEGIN
    for line in lines:
        found.append(link(last, line))
        last = Anchor(found[-1].ordinal, found[-1].hash)
    return found


def some(count: int) -> list[Stored]:
    return chain([Line(0, float(n), "anna", "rollout.pause", f"r-{n}", f"line {n}", "", "") for n in range(count)])


def head_of(rows: Sequence[Stored]) -> Anchor:
    return Anchor(rows[-1].ordinal, rows[-1].hash) if rows else BEGIN


def checked(rows: Sequence[Item], head: Anchor | None, witnessed: Sequence[Anchor] = ()) -> Report:
    return verify([*rows, Ended(head)], witnessed=witnessed)


def flaws(report: Report) -> list[tuple[int, Flaw]]:
    return [(each.ordinal, each.flaw) for each in report.breaks]


def changed(stored: Stored, field: str) -> Stored:
    value = getattr(stored, field)
    return msgspec.structs.replace(stored, **{field: value + 1.0 if field == "at" else f"{value}!"})


CHAINS = st.lists(LINES, min_size=1, max_size=9).map(chain)


# -- the chain ---------------------------------------------------------------------------------------------------------


@given(CHAINS)
def test_an_untouched_log_holds(rows: list[Stored]) -> None:
    report = checked(rows, head_of(rows), [Anchor(each.ordinal, each.hash) for each in rows])

    assert report.holds
    assert (report.lines, report.head) == (len(rows), head_of(rows))


def test_an_empty_log_holds() -> None:
    assert checked([], BEGIN).holds


@given(CHAINS, st.data())
def test_a_line_with_another_text_is_the_one_that_is_named(rows: list[Stored], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    tampered = [*rows]
    tampered[at] = changed(rows[at], data.draw(st.sampled_from(FIELDS)))

    report = checked(tampered, head_of(rows))

    assert flaws(report) == [(at + 1, Flaw.ALTERED)]


@given(CHAINS, st.data())
def test_a_line_with_another_hash_is_the_one_that_is_named(rows: list[Stored], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    tampered = [*rows]
    tampered[at] = msgspec.structs.replace(rows[at], hash=sha256(b"another").hexdigest())

    report = checked(tampered, head_of(rows))

    is_last = at == len(rows) - 1
    assert flaws(report) == [(at + 1, Flaw.ALTERED), *([(at + 1, Flaw.HEAD)] if is_last else [])]


@given(CHAINS, st.data())
def test_a_line_that_was_hashed_anew_breaks_at_the_line_behind_it(rows: list[Stored], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    before = rows[at - 1].hash if at else ""
    tampered = [*rows]
    tampered[at] = changed(rows[at], "detail")
    tampered[at] = msgspec.structs.replace(tampered[at], hash=chained(before, tampered[at].line))

    report = checked(tampered, head_of(rows))

    is_last = at == len(rows) - 1
    assert flaws(report) == [(at + 1, Flaw.HEAD) if is_last else (at + 2, Flaw.ALTERED)]


@given(CHAINS, st.data())
def test_a_line_that_was_taken_out_is_the_one_that_is_named(rows: list[Stored], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))

    report = checked(rows[:at] + rows[at + 1 :], head_of(rows))

    is_last = at == len(rows) - 1
    assert flaws(report) == [(at + 1, Flaw.TRUNCATED if is_last else Flaw.MISSING)]


@given(CHAINS, st.data())
def test_a_line_that_was_taken_out_and_the_rest_renumbered_breaks_there(
    rows: list[Stored], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    rest = [msgspec.structs.replace(each, ordinal=each.ordinal - 1) for each in rows[at + 1 :]]

    report = checked(rows[:at] + rest, head_of(rows))

    assert report.breaks[0].ordinal == at + 1


@given(st.lists(LINES, min_size=2, max_size=9).map(chain), st.data())
def test_two_lines_that_changed_places_are_found_from_the_first_on(rows: list[Stored], data: st.DataObject) -> None:
    one = data.draw(st.integers(0, len(rows) - 2))
    other = data.draw(st.integers(one + 1, len(rows) - 1))
    tampered = [*rows]
    tampered[one], tampered[other] = rows[other], rows[one]

    report = checked(tampered, head_of(rows))

    assert (one + 1, Flaw.REORDERED) in flaws(report)
    assert report.breaks[0].ordinal == one + 1


@given(st.lists(LINES, min_size=2, max_size=9).map(chain), st.data())
def test_two_texts_that_changed_places_are_found_from_the_first_on(rows: list[Stored], data: st.DataObject) -> None:
    one = data.draw(st.integers(0, len(rows) - 2))
    other = data.draw(st.integers(one + 1, len(rows) - 1))
    tampered = [*rows]
    tampered[one] = msgspec.structs.replace(rows[other], ordinal=one + 1)
    tampered[other] = msgspec.structs.replace(rows[one], ordinal=other + 1)

    report = checked(tampered, head_of(rows))

    assert report.breaks[0].ordinal == one + 1


@given(CHAINS, LINES, st.data())
def test_a_line_that_was_put_in_is_found_where_it_stands(rows: list[Stored], line: Line, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows)))
    forged = link(Anchor(at, rows[at - 1].hash if at else ""), replace(line, actor=f"{line.actor} forged"))

    report = checked([*rows[:at], forged, *rows[at:]], head_of(rows))

    assert report.breaks[0].ordinal == at + 1


@given(CHAINS, st.data())
def test_a_log_that_was_written_anew_holds_and_only_a_witness_knows(rows: list[Stored], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    anew = chain([changed(each, "actor").line if each is rows[at] else each.line for each in rows])
    seen = data.draw(st.integers(0, len(rows) - 1))

    alone = checked(anew, head_of(anew))
    witnessed = checked(anew, head_of(anew), [Anchor(seen + 1, rows[seen].hash)])

    assert alone.holds
    assert flaws(witnessed) == ([(seen + 1, Flaw.FORKED)] if seen >= at else [])


@given(CHAINS, st.data())
def test_a_tail_that_was_cut_off_with_its_head_is_missed_by_a_witness(rows: list[Stored], data: st.DataObject) -> None:
    left = data.draw(st.integers(0, len(rows) - 1))

    alone = checked(rows[:left], head_of(rows[:left]))
    witnessed = checked(rows[:left], head_of(rows[:left]), [head_of(rows)])

    assert alone.holds
    assert flaws(witnessed) == [(left + 1, Flaw.TRUNCATED)]
    assert witnessed.breaks[0].last == len(rows)


def test_breaks_behind_a_break_are_found_too() -> None:
    rows = some(12)
    tampered = [*rows[:3], changed(rows[3], "actor"), *rows[4:7], *rows[9:]]

    report = checked(tampered, None)

    assert flaws(report) == [(4, Flaw.ALTERED), (8, Flaw.MISSING), (12, Flaw.HEAD)]
    assert (report.breaks[1].ordinal, report.breaks[1].last) == (8, 9)


def test_lines_behind_the_head_are_named() -> None:
    rows = some(5)

    report = checked(rows, head_of(rows[:3]))

    assert [(each.ordinal, each.last, each.flaw) for each in report.breaks] == [(4, 5, Flaw.HEAD)]


def test_a_row_that_is_no_line_is_named_and_the_next_is_checked_by_its_hash() -> None:
    rows = some(4)

    report = checked([rows[0], Garbled("bytes", 2, rows[1].hash), changed(rows[2], "detail"), rows[3]], head_of(rows))

    assert flaws(report) == [(2, Flaw.GARBLED), (3, Flaw.ALTERED)]


def test_no_more_breaks_are_listed_than_a_person_can_read_and_all_are_counted() -> None:
    rows = [changed(each, "detail") for each in some(BREAKS_MAX + 50)]

    report = checked(rows, head_of(rows))

    assert (len(report.breaks), report.count) == (BREAKS_MAX, BREAKS_MAX + 50)
    assert not report.holds


def test_a_part_of_the_log_holds_behind_the_checkpoint_that_it_begins_with() -> None:
    rows = some(9)
    start = head_of(rows[:4])

    good = verify([*rows[4:], Ended(head_of(rows))], start, [start])
    other = verify([*rows[4:], Ended(head_of(rows))], start, [Anchor(4, sha256(b"seen").hexdigest())])
    earlier = verify([*rows[4:], Ended(head_of(rows))], start, [head_of(rows[:2])])

    assert good.holds
    assert flaws(other) == [(4, Flaw.FORKED)]
    assert flaws(earlier) == [(2, Flaw.FORKED)]  # Nothing that is here shows what came between.


def test_witnesses_who_contradict_each_other_are_never_satisfied() -> None:
    rows = some(3)

    report = checked(rows, head_of(rows), [head_of(rows), Anchor(3, sha256(b"other").hexdigest())])

    assert not report.holds


@given(LINES)
def test_whoever_has_only_the_standard_library_computes_the_same_hash(line: Line) -> None:
    written = json.dumps(asdict(line), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    expected = sha256(b"before" + written.encode()).hexdigest()

    if "e" not in repr(line.at):  # Of times before 1970 and after 3 * 10^8 years, notations differ.
        assert chained("before", line) == expected


# -- what belongs into it ----------------------------------------------------------------------------------------------


FLEET_FILES = ("engine.py", "fleet.py", "following.py", "mending.py", "ordering.py")


def test_every_note_of_the_fleet_has_been_decided_upon() -> None:
    source = Path(muster_controller.__file__).parent
    texts = "".join((source / name).read_text() for name in FLEET_FILES)

    said = set(re.findall(r"\.note\(\s*\"([a-z_]+)\"", texts))

    assert said - DEVICE_DRIVEN == {"wave_started", "baseline_set", "latency_declared", "devices_taken_over"}
    assert said >= DEVICE_DRIVEN


def test_orders_and_decisions_are_audited_and_reports_of_devices_are_not() -> None:
    decided = [f"rollout_{each.value}" for each in (*RolloutState, *Order)] + ["rollout_created", "trust_changed"]

    assert all(is_audited(Note(1.0, what, "x", "")) for what in decided)
    assert not any(is_audited(Note(1.0, what, "x", "")) for what in ("fault_seen", "assignment_refused"))
    assert action_of("rollout_roll_back") == "rollout.roll_back"


def test_a_note_is_audited_in_the_name_of_its_actor_with_the_reason_and_request_at_hand() -> None:
    with act_as(Acting("anna", "req-1", "lunch")):
        written = entry(Note(2.0, "rollout_pause", "r-1", "said", "anna"))

    assert written.who == Acting("anna", "req-1", "lunch")
    assert (written.action, written.subject, written.detail, written.at) == ("rollout.pause", "r-1", "said", 2.0)
    assert acting() == CONTROLLER


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return open_signer(tmp_path, "plant")


def test_the_audit_key_stays_the_same_and_is_its_owners_alone(tmp_path: Path) -> None:
    first, second = open_signer(tmp_path, "plant"), open_signer(tmp_path, "plant")

    assert first.key == second.key
    assert (tmp_path / checkpoints.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_signed_checkpoint_comes_back_alone_and_as_the_end_of_an_export(signer: Signer) -> None:
    made = signer.sign(Anchor(7, "ab"), 12.5)

    assert checkpoints.parse(msgspec.json.encode(made)) == made
    assert checkpoints.parse(export.footer(made)) == made
    logged = {"event": "audit_head", **msgspec.to_builtins(made), "timestamp": "2026-11-22T12:00:00Z"}
    assert checkpoints.parse(msgspec.json.encode(logged)) == made
    assert checkpoints.parse(msgspec.json.format(msgspec.json.encode(made), indent=2)) == made


@pytest.mark.parametrize(
    "change", [{"ordinal": 8}, {"hash": "ac"}, {"fleet": "other"}, {"at": 13.0}, {"signature": "00" * 64}, {"key": "x"}]
)
def test_a_checkpoint_that_was_changed_is_refused(signer: Signer, change: dict[str, object]) -> None:
    made = signer.sign(Anchor(7, "ab"), 12.5)

    with pytest.raises(CheckpointInvalid):
        checkpoints.parse(msgspec.json.encode(msgspec.structs.replace(made, **change)))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"\xff", b'{"checkpoint":{}}', b" " * 20_000])
def test_what_is_no_checkpoint_is_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointInvalid):
        checkpoints.parse(raw)


# -- the file ----------------------------------------------------------------------------------------------------------


def file_of(rows: Sequence[Stored], end: Checkpoint | None, after: Anchor = BEGIN) -> list[bytes]:
    body = [export.header("plant", after), *map(export.row, rows)]
    return body if end is None else [*body, export.footer(end)]


def test_an_export_is_read_as_it_was_written(signer: Signer) -> None:
    rows = some(3)

    found = export.read(file_of(rows, signer.sign(head_of(rows), 1.0)))

    assert list(found.items) == [*rows, Ended(head_of(rows))]
    assert (found.header.fleet, found.why_unsigned) == ("plant", "")


def test_the_ten_lines_of_the_documentation_check_an_export(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    rows = chain([Line(0, 1.5, "änna\n", "x", "y", "\x1f\x7f\u2028 \N{PILE OF POO}", '"', "\\") for _ in range(3)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(file_of(rows, signer.sign(head_of(rows), 1.0))))

    exec(program, {})

    assert rows[-1].hash in capsys.readouterr().out
    (tmp_path / "audit.jsonl").write_bytes(b"".join(file_of([rows[0], changed(rows[1], "actor")], None)))
    with pytest.raises(AssertionError, match="line 2"):
        exec(program, {})


def test_an_export_without_its_end_does_not_hold(signer: Signer) -> None:
    rows = some(3)

    assert flaws(verify(export.read(file_of(rows, None)).items)) == [(3, Flaw.HEAD)]


def test_a_line_that_is_written_in_another_way_is_garbled(signer: Signer) -> None:
    rows = some(3)
    lines = file_of(rows, signer.sign(head_of(rows), 1.0))
    lines[2] = lines[2].replace(b'{"action"', b'{"actor":"ben","action"')  # The last of two counts here, not elsewhere.

    report = verify(export.read(lines).items)

    assert (2, Flaw.GARBLED) in flaws(report)
    assert not any(ordinal > 2 and flaw is Flaw.ALTERED for ordinal, flaw in flaws(report))


def test_a_forged_end_is_found(signer: Signer) -> None:
    rows = some(3)
    forged = msgspec.structs.replace(signer.sign(head_of(rows), 1.0), ordinal=2, hash=rows[1].hash)

    found = export.read(file_of(rows[:2], forged))
    report = verify(found.items)

    assert flaws(report) == [(3, Flaw.GARBLED)]
    assert "was not signed" in found.why_unsigned


def test_what_stands_behind_the_end_is_found(signer: Signer) -> None:
    rows = some(3)
    lines = [*file_of(rows[:2], signer.sign(head_of(rows[:2]), 1.0)), export.row(rows[2])]

    assert flaws(verify(export.read(lines).items)) == [(3, Flaw.GARBLED)]


@given(st.lists(st.binary(max_size=40).map(lambda raw: raw + b"\n"), max_size=6))
def test_no_bytes_make_the_reader_stumble(lines: list[bytes]) -> None:
    report = verify(export.read([export.header("plant"), *lines]).items)

    assert not report.holds


@pytest.mark.parametrize(
    "first", [b"", b"{}\n", b"no\n", b'{"audit":"muster","format":2,"fleet":"x","after":{"ordinal":0,"hash":""}}']
)
def test_what_is_no_export_is_refused(first: bytes) -> None:
    with pytest.raises(export.ExportInvalid):
        export.read([first])
