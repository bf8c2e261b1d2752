"""What other tools get from a controller that runs: pages for Prometheus, pushes to a collector, tables, the review."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from harness.collector import MetricsCollector
from harness.desk import Desk, Puppets, client, is_problem, local_token, open_desk, until, wait_for
from harness.observed import Observed, cell
from harness.scraping import Page, scrape
from muster_controller.core.review.week import Week
from muster_controller.db.engine import find_database
from muster_controller.db.side import SideDatabase
from muster_controller.server import Controller
from muster_shared.metrics import HOUR_S, Kind

PROMTOOL = shutil.which("promtool")
ASKS_FOR_OPEN_METRICS = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def observed(desk: Desk) -> Iterator[Observed]:
    with SideDatabase(find_database(desk.folder / "data" / "muster.db")) as side:
        yield Observed(side)


def scraped(desk: Desk, http: httpx.Client | None = None, accept: str = "text/plain") -> Page:
    answer = (http or desk.http).get(f"{desk.controller.url}/metrics", headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return scrape(answer.text, open_metrics=answer.headers["content-type"].startswith("application/openmetrics-text"))


def watched(observed: Observed, now: float) -> None:
    """Write what a watched fleet leaves behind."""
    hour = now - now % HOUR_S - 2 * HOUR_S
    observed.series(now - now % 300)
    observed.mixed(cell(), Kind.CLASSES, (0.7, 0.2, 0.1), hour)
    observed.mixed(cell(region="south"), Kind.CLASSES, (0.5, 0.4, 0.1), hour)
    observed.mixed(cell(), Kind.FEEDBACK, (0.1, 0.6, 0.05, 0.15, 0.02, 0.08), hour)
    observed.mixed(cell(), Kind.INPUTS, (0.9, 0.02, 0.05, 0.0, 0.0, 0.03, 0.0, 0.0), hour)
    observed.mixed(cell(), Kind.DRIFT, (0.8, 0.2, 0.0, 0.0), hour)
    observed.mixer(now)
    observed.alert(now)
    observed.alert(now, state="resolved")
    observed.objective(now)
    observed.objective(now, "latency", 0.95)


def test_a_scraper_needs_a_viewer_s_token_and_is_told_so_in_a_status(desk: Desk) -> None:
    viewer = desk.hire("vera", "viewer")
    url = f"{desk.controller.url}/metrics"

    with client(desk.controller.url, None) as nobody, client(desk.controller.url, "mst_wrong") as forger:
        answers = [nobody.get(url), forger.get(url)]

    assert all(is_problem(answer, 401, "unauthenticated") for answer in answers)
    assert viewer.get(url).headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert viewer.get(url).headers["cache-control"] == "no-store"


def test_the_page_says_how_the_fleet_is(desk: Desk) -> None:
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{index:02}" for index in range(4)))):
        wait_for(desk, 4)
        desk.publish("1.0.0", 1)
        rollout = desk.roll_out("1.0.0").json()["id"]
        until(lambda: desk.state(rollout) == "finished")

        page = until(lambda: (page := scraped(desk)).value("muster_devices_on_desired") == 4 and page)

    assert page.value("muster_build_info", fleet="test") == 1
    assert page.value("muster_leading") == page.value("muster_broker_connected") == 1
    assert page.value("muster_devices", device_class="sim-cpu", state="current") == 4
    assert page.value("muster_devices", device_class="sim-cpu", state="failing") == 0
    assert page.value("muster_devices_online", device_class="sim-cpu") == 4
    assert page.value("muster_release_devices", model="digits", version="1.0.0") == 4
    assert page.value("muster_rollouts", state="finished") == 1
    assert page.value("muster_messages_total", kind="events") >= 8
    assert page.value("muster_trust_expires_timestamp_seconds", role="root") > time.time()
    assert page.value("process_resident_memory_bytes") > 1e7
    assert page.value("process_start_time_seconds") < time.time()
    assert "dev-0" not in desk.http.get(f"{desk.controller.url}/metrics").text


def test_a_rollout_under_way_shows_its_evidence_and_where_it_would_end(desk: Desk) -> None:
    slow = {"waves": [1, 2], "window_s": 60.0, "window_max_s": 120.0, "requests_min": 0, "deadline_s": 600.0}
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{i:02}" for i in range(4)), delay_s=lambda: 60.0)):
        wait_for(desk, 4)
        desk.publish("1.0.0", 1)
        rollout = desk.roll_out("1.0.0", slow).json()["id"]

        page = scraped(desk)

    assert page.value("muster_rollout_info", rollout=rollout, state="running", version="1.0.0") == 1
    assert 0 < page.value("muster_rollout_evidence", rollout=rollout) <= 1
    assert page.value("muster_rollout_evidence_abort_threshold", rollout=rollout) == pytest.approx(
        1 / desk.get(f"/rollouts/{rollout}")["policy"]["alpha"]
    )
    devices = page.samples["muster_rollout_devices"].values()
    assert sum(devices) == 4


def test_content_comes_with_both_ends_of_its_interval_and_with_its_price(desk: Desk, observed: Observed) -> None:
    now = time.time()
    watched(observed, now)

    page = scraped(desk)

    of_cell = {"model": "digits", "version": "1.0.0", "device_class": "pi5-cpu"}
    for index, truth in enumerate((0.6, 0.3, 0.1)):  # Of both regions.
        shares = [
            page.value(f"muster_class_share{end}", **of_cell, **{"class": str(index)}) for end in ("_low", "", "_high")
        ]
        assert shares == sorted(shares)
        assert shares[1] == pytest.approx(truth, abs=0.02)
        assert 0 < shares[2] - shares[0] < 0.05
    assert page.value("muster_content_devices", **of_cell) == 20_000
    assert page.value("muster_accuracy_ratio", **of_cell) == pytest.approx(0.83, abs=0.05)
    assert page.value("muster_input_share", **of_cell, input="outlier") == pytest.approx(0.05, abs=0.03)
    assert page.value("muster_drift_share", **of_cell, drift="drifting") == pytest.approx(0.2, abs=0.05)
    assert page.value("muster_privacy_rho_spent", mixer="mixer-1") == 0.04
    assert page.value("muster_privacy_rho_budget", mixer="mixer-1") == 0.1
    assert 30 <= page.value("muster_mixer_age_seconds", mixer="mixer-1") < 90
    assert page.value("muster_mixer_windows_total", outcome="refused") == 3
    assert page.samples["muster_alerts"] == {
        frozenset({("rule", "drift"), ("severity", "ticket"), ("state", "firing")}): 1.0
    }
    assert page.value("muster_objective_target_ratio", indicator="availability") == 0.999
    assert page.value("muster_host_cpu_busiest_ratio", device_class="pi5-cpu") == 0.88
    assert page.value("muster_host_cpu_mean_ratio", device_class="pi5-cpu") == 0.3


def test_counters_rise_by_what_devices_told_since(desk: Desk, observed: Observed) -> None:
    now = time.time()
    bin_ = now - now % 300
    observed.series(bin_ - 300)
    first = scraped(desk).value("muster_requests_total")
    observed.series(bin_, energy_j=7.0)

    page = scraped(desk)

    of_cell = {"model": "digits", "version": "1.0.0", "device_class": "pi5-cpu"}
    assert first == 0
    assert page.value("muster_requests_total", **of_cell) == 6000
    assert page.value("muster_request_errors_total", **of_cell) == 12
    assert page.value("muster_slow_requests_total", **of_cell) == 60
    assert page.value("muster_inference_cpu_seconds_total", **of_cell) == 45
    assert page.value("muster_inference_energy_joules_total", **of_cell) == 7
    assert page.value("muster_host_energy_joules_total", device_class="pi5-cpu") == 7
    assert page.value("muster_device_sent_bytes_total", device_class="pi5-cpu") == 1e6


def test_who_sees_some_devices_sees_sums_over_those_and_nothing_of_the_rest(desk: Desk, observed: Observed) -> None:
    watched(observed, time.time())
    with closing(Puppets(desk.controller.broker_url, tuple(f"dev-{index:02}" for index in range(4)))):
        wait_for(desk, 4)
        oslo = desk.hire("ola", "viewer", "site=oslo")

        page = scraped(desk, oslo)

    assert sum(page.samples["muster_devices"].values()) == 2
    assert not {"muster_requests_total", "muster_class_share", "muster_alerts", "muster_rollouts"} & page.names


def test_the_same_page_is_openmetrics_for_who_asks_for_it(desk: Desk, observed: Observed) -> None:
    watched(observed, time.time())

    plain, opened = scraped(desk), scraped(desk, accept=ASKS_FOR_OPEN_METRICS)

    assert set(plain.samples) == set(opened.samples)
    assert opened.kinds["muster_messages"] == "counter"


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on the PATH")
def test_promtool_has_nothing_to_say(desk: Desk, observed: Observed) -> None:
    assert PROMTOOL is not None
    watched(observed, time.time())
    page = desk.http.get(f"{desk.controller.url}/metrics").text

    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# -- the weekly review -------------------------------------------------------------------------------------------------


def test_the_last_week_is_reviewed_by_itself_and_read_by_command(tmp_path: Path) -> None:
    week = Week.due(time.time())
    with open_desk(tmp_path / "first") as desk, SideDatabase(find_database(desk.folder / "data" / "muster.db")) as side:
        observed = Observed(side)
        for hour in range(0, 168, 4):
            observed.series(week.begin + hour * HOUR_S, HOUR_S)
        config = desk.controller._config

    with Controller(config) as controller, client(controller.url, local_token(config.data)) as http:
        known = until(lambda: http.get("/reviews").json()["reviews"])
        found = http.get(f"/reviews/{week}").json()
        so_far = http.get("/reviews/now").json()
        said = {option: muster(config.data, "review", option).stdout for option in ("--json", "--markdown", "--list")}
        refused = muster(config.data, "review", "--week", "2019-W01")

    assert [each["week"] for each in known] == [str(week)]
    [cost] = found["costs"]
    assert (cost["model"], cost["inferences"], cost["energy_kwh"]) == ("digits", 42 * 9000, None)
    assert found["rooms"][0]["cpu_percent"] == 30.0
    assert so_far["week"] == str(Week.of(time.time()))
    assert json.loads(said["--json"])["week"] == str(week)
    assert said["--markdown"] == found["markdown"]
    assert said["--list"].startswith(str(week))
    assert (refused.returncode, "muster review --list" in refused.stderr) == (4, True)


def test_who_sees_a_part_of_the_fleet_reads_no_review_of_it(desk: Desk) -> None:
    oslo = desk.hire("ola", "viewer", "site=oslo")

    assert is_problem(oslo.get("/reviews"), 403, "forbidden")
    assert is_problem(oslo.get("/reviews/now"), 403, "forbidden")
    assert is_problem(desk.http.get("/reviews/2026-W99"), 422, "name-invalid")
    assert is_problem(desk.http.get("/reviews/2020-W01"), 404, "not-found")


def muster(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `muster` against the controller that runs in `data`."""
    environment = {**os.environ, "MUSTER_DATA": str(data)}
    command = [sys.executable, "-m", "muster_controller.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


# -- exports -----------------------------------------------------------------------------------------------------------


def test_metrics_become_files_that_other_tools_read(desk: Desk, observed: Observed, tmp_path: Path) -> None:
    now = time.time()
    watched(observed, now)
    hour = now - now % HOUR_S
    observed.series(hour - HOUR_S, HOUR_S)
    out = tmp_path / "out"

    said = muster(desk.folder / "data", "export", "metrics", "--out", str(out), "--since", "2d ago", "--json")

    assert said.returncode == 0, said.stderr
    written = json.loads(said.stdout)
    assert {str(path) for path in out.rglob("*.parquet")} == set(written)
    sums = pq.read_table(out / "sums").to_pylist()  # All days at once, as DuckDB's globs do.
    classes = [row for row in sums if row["kind"] == "classes"]
    assert len(classes) == 6
    assert {row["region"] for row in classes} == {"north", "south"}
    assert all(abs(row["sum_units"]) < 10_000 * 64 for row in classes)
    assert {row["period_start"].timestamp() for row in sums} == {hour - 2 * HOUR_S}
    assert [row["label"] for row in sums if row["kind"] == "drift"] == ["quiet", "drifting", "skewed", "unknown"]
    series = pq.read_table(out / "series").to_pylist()
    assert sorted((row["model"], row["requests"]) for row in series) == [("", 6000), ("digits", 6000)]


def test_duckdb_reads_what_was_exported(desk: Desk, observed: Observed, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    watched(observed, time.time())
    muster(desk.folder / "data", "export", "metrics", "--out", str(tmp_path), "--since", "2d ago")

    query = f"SELECT count(*) FROM read_parquet('{tmp_path}/sums/*.parquet') WHERE kind = 'classes'"

    assert duckdb.sql(query).fetchall() == [(6,)]


def test_an_export_is_of_the_whole_fleet_or_refused(desk: Desk, tmp_path: Path) -> None:
    oslo = desk.hire("ola", "viewer", "site=oslo")
    span = {"since": 0, "until": 86_400}

    nothing = muster(desk.folder / "data", "export", "metrics", "--out", str(tmp_path / "out"), "--format", "csv")

    assert is_problem(oslo.get("/export/sums", params=span), 403, "forbidden")
    assert is_problem(desk.http.get("/export/series", params={"since": 5, "until": 4}), 422, "name-invalid")
    assert desk.http.get("/export/series", params=span).headers["content-type"].startswith("application/x-ndjson")
    assert (nothing.returncode, nothing.stdout) == (0, "nothing was measured in that time.\n")


def test_a_collector_is_sent_the_same_families(tmp_path: Path) -> None:
    with closing(MetricsCollector()) as collector, open_desk(tmp_path, otlp_url=collector.url) as desk:
        request = collector.next()
        page = scraped(desk)

    pushed = {metric.name for scope in request.resource_metrics[0].scope_metrics for metric in scope.metrics}
    assert (
        {"muster_build_info", "process_cpu_seconds_total", "muster_leading"}
        <= pushed
        <= set(page.samples) | {"muster_trust_expires_timestamp_seconds"}
    )
