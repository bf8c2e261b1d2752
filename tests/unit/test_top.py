"""What `top` makes of two readings: rates, quantiles of the difference only, and a picture that fits the terminal."""

from typing import Any

import pytest

from muster_agent.top import Process, Reading, lines, parse, view

ENGINE = {"engine": "onnxruntime", "version": "1.31.1", "device": "CPU", "precision": "fp32", "threads": 1}


def status(requests: int, *, errors: int = 0, digest: str = "d", version: str = "2.0.0") -> dict[str, Any]:
    counters = {"requests": requests, "rows": requests * 4, "batches": requests // 2, "errors": errors}
    model = {
        "version": version,
        "manifest_sha256": digest,
        "engine": ENGINE,
        "queued": 3,
        "instances": 0,
        "counters": counters,
    }
    return {"agent": "0.1.0", "online": True, "device": {"device": "edge-1"}, "models": {"digits": model}}


def page(fast: int, slow: int, *, breaker: int = 0, version: str = "2.0.0") -> str:
    """Stages of which `fast` took up to 1 ms, and `slow` from 1 to 2 ms."""
    labels = f'model="digits",version="{version}"'
    buckets = [("0.001", fast), ("0.002", fast + slow), ("+Inf", fast + slow)]
    return "\n".join(
        [
            "# HELP muster_stage_seconds Time of each stage",
            *(f'muster_stage_seconds_bucket{{{labels},stage="compute",le="{le}"}} {count}' for le, count in buckets),
            f"muster_breaker_state{{{labels}}} {breaker}",
            'muster_trial_compared_total{model="digits",candidate="3.0.0",mode="shadow"} 200',
            'muster_trial_disagreed_total{model="digits",candidate="3.0.0",mode="shadow"} 5',
            "not a sample at all",
        ]
    )


def reading(at_s: float, requests: int, fast: int, slow: int, **other: Any) -> Reading:
    return Reading(at_s, status(requests, **other), parse(page(fast, slow)), Process(at_s / 2, 50 << 20))


def test_rates_are_those_of_the_interval() -> None:
    [model] = view(reading(10.0, 1000, 0, 0), reading(12.0, 1200, 0, 0)).models

    assert model.requests_per_s == pytest.approx(100)
    assert model.rows_per_s == pytest.approx(400)
    assert model.batch_mean == pytest.approx(8)


def test_quantiles_forget_what_was_before_the_interval() -> None:
    before = reading(10.0, 1000, 1_000_000, 0)
    now = reading(11.0, 1100, 1_000_000, 100)

    [model] = view(before, now).models

    assert model.stages["compute"].p50_ms == pytest.approx(1.5)
    assert model.stages["queue"].p50_ms is None


def test_the_process_uses_half_a_processor() -> None:
    shown = view(reading(10.0, 0, 0, 0), reading(12.0, 0, 0, 0))

    assert shown.cpu_percent == pytest.approx(50)
    assert shown.rss_mb == pytest.approx(50)


def test_another_release_begins_anew() -> None:
    [model] = view(reading(10.0, 5000, 0, 0), reading(11.0, 30, 0, 0, digest="e")).models

    assert model.requests_per_s == pytest.approx(30)


def test_an_agent_that_was_restarted_has_no_negative_rates() -> None:
    [model] = view(reading(10.0, 5000, 100, 100), reading(11.0, 30, 10, 0)).models

    assert model.requests_per_s == pytest.approx(30)
    assert model.stages["compute"].p50_ms == pytest.approx(0.5)


def test_a_trial_says_how_many_agree() -> None:
    [model] = view(reading(10.0, 0, 0, 0), reading(11.0, 0, 0, 0)).models

    assert model.trial is not None
    assert model.trial.agreement == pytest.approx(0.975)


def test_labels_with_quotes_and_commas_are_read() -> None:
    samples = parse('x{a="1,2",b="say \\"hi\\""} 3\nx 4 \ny NaN')

    assert samples["x"][(("a", "1,2"), ("b", 'say \\"hi\\"'))] == 3
    assert samples["x"][()] == 4


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_picture_fits_the_terminal_and_is_plain_without_colour(width: int) -> None:
    before = reading(10.0, 1000, 0, 0)
    now = Reading(11.0, status(10**9, errors=7, version="2.0.0"), parse(page(10, 10, breaker=2)), None)

    picture = lines(view(before, now), width=width)

    assert max(map(len, picture)) <= width
    assert not any("\x1b" in line for line in picture)
    if width >= 80:
        text = "\n".join(picture)
        assert "breaker open" in text
        assert "97.50% of 200 rows agree" in text


def test_errors_are_red_only_where_colour_is_wanted() -> None:
    shown = view(reading(10.0, 1000, 0, 0), reading(11.0, 1100, 0, 0, errors=5))

    assert any(line.startswith("\x1b[31m") and "5/s errors" in line for line in lines(shown, colour=True))
    assert any(line == "  5/s errors" for line in lines(shown))


def test_a_device_without_models_is_said_to_have_none() -> None:
    empty = Reading(1.0, {"agent": "0.1.0", "models": {}}, {})

    assert lines(view(empty, empty))[-1] == "no model serves"
