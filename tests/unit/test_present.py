"""What the pages say of numbers."""

import msgspec
import pytest

from muster_controller.web.present import HOST, ago, host_rows, number, span
from muster_shared.messages import HostTelemetry


def test_what_a_host_does_not_tell_is_named_and_not_shown_as_nothing() -> None:
    host = msgspec.to_builtins(HostTelemetry(cpu_percent=12.3, uptime_s=41_810.0, throttled=False))

    told, untold = host_rows(host)

    assert told == [("processor", "12 %"), ("running for", "12 h"), ("held back by heat or power", "no")]
    assert "temperature" in untold
    assert len(told) + len(untold) == len(host)


def test_every_field_of_a_host_has_a_name_that_people_read() -> None:
    assert HOST.keys() | {"uptime_s"} == set(HostTelemetry.__struct_fields__)


@pytest.mark.parametrize(("seconds", "said"), [(40, "40 s"), (720, "12 min"), (18_000, "5 h"), (259_200, "3 days")])
def test_a_time_is_said_in_the_unit_that_people_would_use(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_times_are_told_from_now_in_both_directions() -> None:
    assert ago(0.0, 1e9) == "never"
    assert ago(1e9 - 2, 1e9) == "just now"
    assert ago(1e9 - 7200, 1e9) == "2 h ago"
    assert ago(1e9 + 7200, 1e9) == "in 2 h"
    assert ago(1e9 + 30 * 86_400, 1e9) == "in 30 d"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.042, "0.042"),
        (1.72, "1.7"),
        (260.4, "260"),
        (31_412.0, "31,000"),
        (3.14e6, "3.1 × 10⁶"),
        (2e15, "2.0 × 10¹⁵"),
    ],
)
def test_evidence_is_written_without_an_exponent_that_only_programs_read(value: float, words: str) -> None:
    assert number(value) == words
