"""Calls: which ones a device obeys, what it answers, and what of its log leaves it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.calls.desk import CALL_BYTES_MAX, WAITING_MAX, CallDesk
from muster_agent.calls.judging import SKEW_S, Answered, refusal, take
from muster_agent.calls.ring import ANSWER_BYTES, LINE_CHARACTERS_MAX, LINES_KEPT, Ring, fit_to_leave
from muster_agent.errors import CheckFailed
from muster_agent.io.trust_state import CallEnvelope, Failure, OpenedCall
from muster_shared.assignment import AssignmentKeys
from muster_shared.call import LIFETIME_S, Call, CallKind
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.messages import ANSWER_BYTES_MAX, Answer, ModelChecked, decode

FLEET, OWN = FleetId("plant"), DeviceId("crane-07")
NOW = 1_000_000.0


def call(**changes: object) -> Call:
    asked = Call(
        fleet=FLEET,
        device=OWN,
        id="c1",
        what=CallKind.SELF_TEST,
        issued_at=NOW,
        expires_at=NOW + LIFETIME_S,
    )
    return msgspec.structs.replace(asked, **changes)


def checked(name: str = "digits", *, ok: bool = True, detail: str = "") -> ModelChecked:
    return ModelChecked(model=ModelName(name), version="1.0.0", ok=ok, detail=detail)


@dataclass
class Stand:
    """A desk whose opener believes everybody, and what it answered."""

    allow: tuple[str, ...] = ("self_test", "benchmark", "logs")
    models: tuple[ModelChecked, ...] = (checked(),)
    now: float = NOW
    keys: AssignmentKeys | None = field(default_factory=lambda: AssignmentKeys(keys={}))
    failure: str = ""
    ring: Ring = field(default_factory=Ring)

    def __post_init__(self) -> None:
        self.desk = CallDesk(
            FLEET,
            OWN,
            allow=self.allow,
            keys=lambda: self.keys,
            opener=self,
            looks=self,
            ring=self.ring,
            answer=lambda raw: None,
            clock=lambda: self.now,
        )

    def open_call(self, envelope: CallEnvelope) -> OpenedCall:
        if self.failure == "nobody":
            raise CheckFailed("the process is gone")
        if self.failure:
            return OpenedCall(call=None, failure=Failure("AssignmentForged", self.failure))
        return OpenedCall(call=msgspec.json.decode(envelope.raw, type=Call))

    def self_test(self) -> tuple[ModelChecked, ...]:
        return self.models

    def benchmark(self) -> tuple[ModelChecked, ...]:
        return self.models

    def ask(self, **changes: object) -> Answer | None:
        raw = self.desk.obey(msgspec.json.encode(call(**changes)))
        return None if raw is None else decode(raw, Answer)


def test_a_call_for_this_device_is_obeyed_and_answered_once() -> None:
    stand = Stand()

    answer = stand.ask()

    assert answer is not None
    assert (answer.id, answer.device, answer.ok, answer.models) == ("c1", OWN, True, (checked(),))
    assert stand.ask() is None, "the same again"
    assert stand.ask(id="c2") is not None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "crane-08"}, "another device"),
        ({"fleet": "other"}, "another device"),
        ({"issued_at": NOW - 400, "expires_at": NOW - 100}, "expired"),
        ({"expires_at": NOW + 10 * LIFETIME_S}, "expired"),
        ({"issued_at": NOW + SKEW_S + 1, "expires_at": NOW + LIFETIME_S}, "later than now"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_what_is_not_for_now_or_not_for_this_device_is_not_answered(changes: Mapping[str, object], why: str) -> None:
    said = refusal(call(**changes), FLEET, OWN, Answered(), NOW)

    assert said is not None
    assert why in said
    assert Stand().ask(**changes) is None


@pytest.mark.parametrize("failure", ["no trusted key signed it", "nobody"])
def test_what_nobody_vouches_for_is_not_answered(failure: str) -> None:
    stand = Stand(failure=failure)

    assert stand.ask() is None
    assert stand.desk.refused == 1


def test_before_any_trust_metadata_was_verified_nothing_is_answered() -> None:
    assert Stand(keys=None).ask() is None


def test_what_the_owner_does_not_allow_is_answered_with_a_word() -> None:
    answer = Stand(allow=("self_test",)).ask(what=CallKind.LOGS, lines=5)

    assert answer is not None
    assert not answer.ok
    assert "does not allow logs" in answer.detail


def test_a_failed_model_makes_the_answer_bad_and_so_does_nothing_to_look_at() -> None:
    failed = Stand(models=(checked(), checked("voice", ok=False))).ask()
    nothing = Stand(models=()).ask()

    assert failed is not None
    assert nothing is not None
    assert (failed.ok, nothing.ok, nothing.detail) == (False, False, "nothing serves on it")


def test_an_answer_is_never_larger_than_an_answer_may_be() -> None:
    models = tuple(checked(f"m{number}", detail="é" * 3000) for number in range(64))

    raw = Stand(models=models).desk.obey(msgspec.json.encode(call()))

    assert raw is not None
    assert len(raw) <= ANSWER_BYTES_MAX
    assert "cut" in decode(raw, Answer).detail


def test_too_many_and_too_long_calls_are_dropped_without_waiting() -> None:
    stand = Stand()

    for _ in range(WAITING_MAX + 3):
        stand.desk.take(b"{}")
    stand.desk.take(b"x" * (CALL_BYTES_MAX + 1))

    assert (stand.desk.dropped, stand.desk.refused) == (3, 1)


def test_what_was_taken_is_remembered_until_it_has_expired() -> None:
    taken = take(Answered(), call(), NOW)

    assert refusal(call(), FLEET, OWN, taken, NOW + 1) == "it was asked before"
    later = take(taken, call(id="c2", issued_at=NOW + 400, expires_at=NOW + 500), NOW + 400)
    assert set(later.until) == {"c2"}, "an expired call is refused for that"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"event":"agent_started","version":"1.2.0"}', '{"event":"agent_started","version":"1.2.0"}'),
        ('{"reason":"/var/lib/muster-agent/views/ab: gone"}', '{"reason":"(path): gone"}'),
        ('{"reason":"see ~/models/x.onnx"}', '{"reason":"see (path)"}'),
        ('{"url":"http://ann:secret@host:80/v1"}', '{"url":"http://host:80/v1"}'),
        (
            '{"event":"x","exception":"Traceback \\"a\\"\\nFile /a/b"}',
            '{"event":"x","exception":"(kept on the device)"}',
        ),
        ('{"ratio":"3/4","at":"2026-11-22T10:00:00Z"}', '{"ratio":"3/4","at":"2026-11-22T10:00:00Z"}'),
    ],
)
def test_a_line_of_the_log_leaves_without_paths_tracebacks_and_users(line: str, expected: str) -> None:
    assert fit_to_leave(line) == expected


def test_the_ring_keeps_the_newest_lines_and_gives_as_many_as_an_answer_holds() -> None:
    ring = Ring()
    for number in range(LINES_KEPT + 10):
        ring.keep(json.dumps({"event": f"e{number}"}).encode())

    assert ring.last(2) == ('{"event": "e508"}', '{"event": "e509"}')
    assert len(ring.last(10_000)) == LINES_KEPT
    assert ring.last(0) == ()


@given(st.lists(st.text(max_size=3000), max_size=60))
def test_whatever_is_logged_the_tail_is_bounded(lines: list[str]) -> None:
    ring = Ring()
    for line in lines:
        ring.keep(line.encode("utf-8", "surrogatepass"))

    tail = ring.last(200)

    assert sum(len(line.encode()) + 1 for line in tail) <= ANSWER_BYTES
    assert all(len(line) <= LINE_CHARACTERS_MAX for line in tail)


def test_no_folder_of_the_device_is_in_what_a_log_line_says(tmp_path: Path) -> None:
    said = fit_to_leave(json.dumps({"reason": f"{tmp_path}/blobs/aa cannot be read", "file": str(tmp_path / "x.y")}))

    assert str(tmp_path) not in said
