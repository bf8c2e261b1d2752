"""The end of a device's log: what its lines say to people, whatever a device sends."""

import json

from hypothesis import given
from hypothesis import strategies as st

from muster_controller.web.log_present import LogLine, log_lines

AT = "2026-11-23T00:42:55.500000Z"


def test_a_line_is_when_how_bad_what_and_the_rest_by_name() -> None:
    text = json.dumps({"event": "broker_lost", "reason": "no answer", "level": "warning", "timestamp": AT})

    (line,) = log_lines([text])

    assert line == LogLine("broker lost", 1795394575.5, "warning", "hold", (("reason", "no answer"),))


def test_fields_read_as_people_write_them_and_what_is_nested_as_json() -> None:
    text = json.dumps({"event": "agent_started", "runtimes": ["onnxruntime", "openvino"], "ok": True, "more": {"a": 1}})

    (line,) = log_lines([text])

    assert dict(line.fields) == {"runtimes": "onnxruntime, openvino", "ok": "true", "more": '{"a":1}'}
    assert (line.at, line.level, line.tone) == (None, "", "")


def test_what_is_no_line_of_ours_is_shown_as_it_came() -> None:
    odd = ["Traceback (most recent call last):", "", "[1]", '{"event": 3}', '{"event": "cut off', "[" * 100_000]

    lines = log_lines(odd)

    assert lines == [LogLine(text) for text in odd]


def test_a_time_that_is_none_stays_among_the_fields() -> None:
    (line,) = log_lines([json.dumps({"event": "started", "timestamp": "noon"})])

    assert (line.at, line.fields) == (None, (("timestamp", "noon"),))


@given(st.lists(st.text() | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps)))
def test_every_line_is_shown(lines: list[str]) -> None:
    assert len(log_lines(lines)) == len(lines)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())))
def test_no_object_is_refused(said: dict[str, object]) -> None:
    (line,) = log_lines([json.dumps({**said, "event": "started"})])

    assert line.event == "started"
