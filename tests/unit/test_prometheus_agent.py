"""The agent's metrics page for scrapers that ask for OpenMetrics, with the traces that stand for its buckets."""

import shutil
import subprocess

import pytest

from harness.asking import Scripted, scripted
from harness.endpoint import MODEL
from harness.scraping import Page, scrape
from muster_agent.serving import prometheus
from muster_agent.serving.call import Batch, Call
from muster_agent.serving.execution import Times
from muster_agent.serving.prometheus import NO_EXEMPLARS, Exemplars
from muster_agent.serving.table import ServingTable
from muster_agent.serving.tracing import Exemplar

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRITON = ("nv_",)
MS = 1_000_000
PROMTOOL = shutil.which("promtool")


def table() -> ServingTable:
    """A table of one release that answered one call: 10 ms of waiting, 3 of the engine."""
    release, found = scripted(Scripted()), ServingTable()
    found.switch(MODEL, release)
    call = Call((), (), 1)
    call.batch = Batch((), 3 * MS, rows_axis=True)
    times = Times(10 * MS, 10 * MS, 13 * MS)
    release.stats.ran([call], times, times.computed_ns)
    release.stats.staged([call], times, 14 * MS)
    return found


def page(exemplars: Exemplars = NO_EXEMPLARS, *, open_metrics: bool = True) -> Page:
    found = table()
    text = prometheus.render(found.places(), found.trials, open_metrics=open_metrics, exemplars=exemplars)
    return scrape(text, open_metrics=open_metrics, foreign=TRITON)


def test_both_formats_say_the_same() -> None:
    plain, opened = page(open_metrics=False), page()

    assert dict(plain.samples) == dict(opened.samples)
    assert plain.kinds["nv_inference_count"] == "counter"
    assert opened.kinds["nv_inference_count"] == "unknown"  # A counter would have to end in _total.
    assert opened.kinds["muster_feedback_labelled"] == "counter"


@pytest.mark.parametrize(
    ("stage", "seconds"), [("queue", 0.010), ("compute", 0.003), ("compute", 5e-7), ("queue", 90.0)]
)
def test_a_trace_stands_behind_the_one_bucket_that_its_latency_is_in(stage: str, seconds: float) -> None:
    exemplar = Exemplar(TRACE, seconds, 1_795_000_000.5)

    found = page({(MODEL, "1.0.1", stage): exemplar}).exemplars

    [((name, labels), told)] = found.items()
    assert name == "muster_stage_seconds_bucket"
    assert {("stage", stage), ("version", "1.0.1")} <= labels
    assert (told.labels, told.at) == ({"trace_id": TRACE}, 1_795_000_000.5)
    assert told.value == pytest.approx(seconds, abs=1e-9)


def test_the_text_format_has_no_exemplars_and_releases_that_are_gone_have_none() -> None:
    exemplar = Exemplar(TRACE, 0.003, 1.0)

    plain = page({(MODEL, "1.0.1", "compute"): exemplar}, open_metrics=False)
    gone = page({(MODEL, "0.9.0", "compute"): exemplar})

    assert not plain.exemplars
    assert not gone.exemplars


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5", True),
        (b"text/plain", False),
        (b"", False),
    ],
)
def test_a_scraper_says_what_it_takes(accept: bytes, wanted: bool) -> None:
    assert prometheus.wants_open_metrics(accept) is wanted


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the PATH")
def test_promtool_finds_fault_with_nothing_but_triton_s_names() -> None:
    assert PROMTOOL is not None
    found = table()
    text = prometheus.render(found.places(), found.trials)

    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)

    assert {line.split(" ")[0][:3] for line in checked.stderr.splitlines()} == {"nv_"}
