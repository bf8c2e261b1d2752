"""The metrics page: what a scraper reads by the text format 0.0.4, and that each figure is the one that was counted."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest

from muster_agent.core.breaker import BreakerSettings
from muster_agent.core.plan import ServingPlan
from muster_agent.core.split import Mode
from muster_agent.engines.port import Achieved, Array, InferenceFailed
from muster_agent.serving import prometheus
from muster_agent.serving.call import Batch, Call
from muster_agent.serving.config import ServingConfig, UpstreamConfig
from muster_agent.serving.execution import Times
from muster_agent.serving.spill import Spill
from muster_agent.serving.stats import WindowStats
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import Golden, Manifest, Serving, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256

_SAMPLE = re.compile(r'(?P<name>[a-z_]+)\{(?P<labels>[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*)\} (?P<value>\S+)')
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
MS = 1_000_000

Labels = frozenset[tuple[str, str]]


class Page:
    """A page, parsed strictly."""

    def __init__(self, text: str) -> None:
        assert text.endswith("\n")
        self.kinds: dict[str, str] = {}
        self.samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        family = ""
        for line in text.removesuffix("\n").split("\n"):
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                assert family not in self.kinds, f"{family} comes twice"
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name == family
                self.kinds[name] = kind
            else:
                self._sample(family, line)

    def _sample(self, family: str, line: str) -> None:
        found = _SAMPLE.fullmatch(line)
        assert found is not None, line
        parts = ("_bucket", "_sum", "_count") if self.kinds[family] == "histogram" else ("",)
        assert found["name"] in [family + part for part in parts], f"{line} is not of {family}"
        labels = frozenset(_LABEL.findall(found["labels"]))
        assert labels not in self.samples[found["name"]], f"{line} comes twice"
        self.samples[found["name"]][labels] = float(found["value"])

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample of `name` that has these labels."""
        wanted = set(labels.items())
        [value] = [value for known, value in self.samples[name].items() if wanted <= known]
        return value


class Nothing:
    """A session that nobody runs."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        raise AssertionError("nobody runs it")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("nobody runs it")

    def close(self) -> None:
        """Hold nothing."""


class Ended(Call):
    def settle(self) -> None:
        raise AssertionError("counting settles nobody")


def served(model: str = "digits", version: str = "1.0.0", release: int = 1, *, cache: bool = False) -> Served:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
    manifest = Manifest(
        model=ModelName(model),
        version=version,
        release=release,
        inputs=(tensor,),
        outputs=(tensor,),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        serving=Serving(cache=cache),
    )
    return Served(
        manifest=manifest,
        manifest_sha256=Sha256(f"{release:064x}"),
        session=Nothing(),
        latency_ms=1.0,
        plan=ServingPlan(inline=True, batch_max=4),
    )


def table_of(*releases: Served, config: ServingConfig | None = None) -> ServingTable:
    table = ServingTable(config)
    for release in releases:
        table.switch(release.manifest.model, release)
    return table


def ran(stats: WindowStats, rows: Sequence[int], *, queue_ms: int, engine_ms: int) -> None:
    """Count calls of so many rows each that arrived together, waited, and were one batch."""
    times = Times(queue_ms * MS, (queue_ms + 1) * MS, (queue_ms + 1 + engine_ms) * MS)
    calls = [Ended((), (), each) for each in rows]
    batch = Batch((), engine_ms * MS, rows_axis=True)
    for call in calls:
        call.batch = batch
    end_ns = times.computed_ns + 2 * MS
    stats.ran(calls, times, times.computed_ns)
    stats.staged(calls, times, end_ns)


def page_of(table: ServingTable, spill: Spill | None = None) -> Page:
    return Page(prometheus.render(table.places(), table.trials, spill))


def test_the_page_of_an_empty_device_is_one() -> None:
    page = page_of(table_of())

    assert "nv_inference_request_success" in page.kinds
    assert not any(page.samples.values())


def test_what_was_counted_is_what_is_read() -> None:
    release = served()
    ran(release.stats, [1, 4], queue_ms=10, engine_ms=5)
    ran(release.stats, [2], queue_ms=20, engine_ms=5)
    release.stats.failed()
    release.stats.refused()
    release.stats.rejected()
    release.stats.rejected()
    release.stats.cancelled()
    release.stats.labelled(right=True)
    release.stats.labelled(right=False)

    page = page_of(table_of(release))

    expected = {
        "nv_inference_request_success": 3,
        "nv_inference_count": 7,
        "nv_inference_exec_count": 2,
        "nv_inference_request_duration_us": 2 * 16_000 + 26_000,
        "nv_inference_queue_duration_us": 40_000,
        "nv_inference_compute_input_duration_us": 3_000,
        "nv_inference_compute_infer_duration_us": 15_000,
        "nv_inference_compute_output_duration_us": 6_000,
        "nv_inference_pending_request_count": 0,
        "muster_feedback_labelled_total": 2,
        "muster_feedback_right_total": 1,
        "muster_breaker_state": 0,
    }
    assert {name: page.value(name, model="digits", version="1.0.0") for name in expected} == expected
    reasons = {
        reason: page.value("nv_inference_request_failure", reason=reason)
        for reason in ("BACKEND", "OTHER", "REJECTED", "CANCELED")
    }
    assert reasons == {"BACKEND": 1, "OTHER": 1, "REJECTED": 2, "CANCELED": 1}


@pytest.mark.parametrize(("stage", "milliseconds"), [("queue", 10), ("input", 1), ("compute", 5), ("output", 2)])
def test_each_stage_is_a_histogram_in_seconds(stage: str, milliseconds: int) -> None:
    release = served()
    ran(release.stats, [1, 1, 1], queue_ms=10, engine_ms=5)

    page = page_of(table_of(release))

    buckets = {
        dict(labels)["le"]: count
        for labels, count in page.samples["muster_stage_seconds_bucket"].items()
        if ("stage", stage) in labels
    }
    counts = list(buckets.values())
    assert page.kinds["muster_stage_seconds"] == "histogram"
    assert counts == sorted(counts)
    assert buckets["+Inf"] == page.value("muster_stage_seconds_count", stage=stage) == 3
    assert page.value("muster_stage_seconds_sum", stage=stage) == pytest.approx(3 * milliseconds / 1e3)
    below = [float(edge) for edge, count in buckets.items() if count == 3 and edge != "+Inf"]
    assert min(below) / 2 <= milliseconds / 1e3 <= min(below)


def test_models_are_told_apart() -> None:
    first, second = served("first"), served("second", "3.2.1")
    ran(second.stats, [5], queue_ms=1, engine_ms=1)

    page = page_of(table_of(second, first))

    assert page.value("nv_inference_count", model="first", version="1.0.0") == 0
    assert page.value("nv_inference_count", model="second", version="3.2.1") == 5


def test_only_models_with_a_memory_have_hits_and_misses() -> None:
    plain, cached = served("plain"), served("cached", cache=True)
    ran(cached.stats, [1], queue_ms=1, engine_ms=1)
    cached.stats.remembered(1)
    cached.stats.remembered(1)

    page = page_of(table_of(plain, cached))

    assert page.value("nv_cache_num_hits_per_model") == 2
    assert page.value("nv_cache_num_misses_per_model") == 1
    assert page.value("nv_inference_request_success", model="cached") == 3


def test_the_state_of_a_breaker_is_a_number() -> None:
    config = ServingConfig(breaker=BreakerSettings(calls_min=1, share_max=0.5, open_s=1.0, open_s_max=1.0, probes=2))
    table = table_of(served(), config=config)
    breaker = table.place("digits").breaker
    states = [page_of(table).value("muster_breaker_state")]

    breaker.failed(1, 2)
    states.append(page_of(table).value("muster_breaker_state"))
    breaker.allows(2 * 10**9)
    states.append(page_of(table).value("muster_breaker_state"))

    assert states == [0, 2, 1]


def test_a_canary_has_rows_of_its_own_beside_the_release_that_serves() -> None:
    serving, candidate = served(), served(version="2.0.0", release=2)
    table = table_of(serving)
    table.begin_trial(candidate, Mode.CANARY, 0.5, lambda: 0.5)
    ran(serving.stats, [1, 1], queue_ms=1, engine_ms=1)
    ran(candidate.stats, [1], queue_ms=1, engine_ms=1)
    trial = table.trials["digits"].trial
    trial.answered(5 * MS, by_candidate=True)
    trial.failed()

    page = page_of(table)

    assert page.value("nv_inference_count", version="1.0.0") == 2
    assert page.value("nv_inference_count", version="2.0.0") == 1
    assert page.value("muster_trial_errors_total", candidate="2.0.0", mode="canary") == 1
    assert page.value("muster_trial_engine_seconds_count", release="candidate") == 1
    assert page.value("muster_trial_engine_seconds_sum", release="candidate") == pytest.approx(0.005)
    assert page.value("muster_trial_engine_seconds_count", release="serving") == 0


def test_what_a_shadow_is_asked_is_no_request_of_the_model() -> None:
    table = table_of(served())
    candidate = served(version="2.0.0", release=2)
    table.begin_trial(candidate, Mode.SHADOW, 1.0, lambda: 0.5)
    ran(candidate.stats, [1], queue_ms=1, engine_ms=1)

    page = page_of(table)

    assert page.value("nv_inference_count", model="digits") == 0
    assert page.value("muster_trial_compared_total", candidate="2.0.0", mode="shadow") == 0


def test_an_upstream_is_told_of_by_name() -> None:
    spill = Spill(UpstreamConfig(url="http://10.0.0.5:8000/prefix"))

    page = page_of(table_of(), spill)

    assert page.value("muster_spilled_total", upstream="10.0.0.5:8000") == 0
    assert page.value("muster_spill_failed_total", upstream="10.0.0.5:8000") == 0


def test_a_failure_of_the_engine_is_no_success() -> None:
    release = served()
    call = Ended((), (), 1)
    call.error = InferenceFailed("ill")
    release.stats.ran([call], Times(0, 0, MS), MS)

    page = page_of(table_of(release))

    assert page.value("nv_inference_request_success") == 0
    assert page.value("nv_inference_request_failure", reason="BACKEND") == 1
    assert page.value("nv_inference_exec_count") == 0
