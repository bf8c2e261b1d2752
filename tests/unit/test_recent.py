"""What a release did lately, by readings now and then."""

from harness.clock import Clock
from harness.service_alone import Engine, served
from muster_agent.serving.recent import LOOKS_MAX, Recent
from muster_agent.serving.table import Served, ServingTable
from muster_shared.messages import ReleaseRef


class Setup:
    """A table with one release, whose requests a test counts by hand."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.table = ServingTable()
        self.release: Served = served(Engine())
        self.table.switch(self.release.manifest.model, self.release)
        self.recent = Recent(self.table, self.clock)
        self.ref = ReleaseRef(
            model=self.release.manifest.model,
            version=self.release.manifest.version,
            release=1,
            bundle_sha256=self.release.manifest_sha256,
            bundle_length=1,
        )

    def answer(self, count: int, ms: float) -> None:
        for _ in range(count):
            self.release.stats._requests += 1
            self.release.stats._computed(int(ms * 1e6), 1)

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.recent.look()

    def p95(self, seconds: float, requests_min: int = 1) -> float | None:
        return self.recent.latency_ms_p95(self.ref, seconds, requests_min)


def near(found: float | None, ms: float) -> bool:
    return found is not None and abs(found / ms - 1) < 0.05


def test_only_the_last_seconds_count() -> None:
    setup = Setup()
    setup.recent.look()
    setup.answer(100, 50.0)
    setup.passes(15.0)
    setup.answer(100, 2.0)
    setup.passes(15.0)
    setup.answer(100, 2.0)

    assert near(setup.p95(15.0), 2.0)
    assert near(setup.p95(30.0), 50.0)


def test_too_few_requests_say_nothing() -> None:
    setup = Setup()
    setup.recent.look()
    setup.answer(9, 2.0)

    assert setup.p95(10.0, 10) is None
    setup.answer(1, 2.0)
    assert near(setup.p95(10.0, 10), 2.0)


def test_failures_are_no_requests_that_took_time() -> None:
    setup = Setup()
    setup.recent.look()
    setup.answer(5, 2.0)
    for _ in range(5):
        setup.release.stats.failed()

    assert setup.p95(10.0, 6) is None


def test_what_does_not_serve_has_done_nothing() -> None:
    setup = Setup()
    setup.table.remove(setup.release.manifest.model)

    assert setup.p95(10.0) is None


def test_readings_stay_few_and_still_reach_far_back() -> None:
    setup = Setup()
    for _ in range(2000):
        setup.answer(1, 2.0)
        setup.passes(15.0)

    assert len(setup.recent._looks) <= LOOKS_MAX + 1
    assert setup.clock.now - setup.recent._looks[0].at > 3600.0
    # Half an hour is a hundred and twenty readings; it may be up to twice as long, never shorter.
    assert setup.p95(1800.0, 120) is not None
    assert setup.p95(60.0, 60) is None


def test_the_rate_of_all_models_is_known_after_a_while() -> None:
    setup = Setup()
    assert setup.recent.requests_per_s() is None
    setup.recent.look()
    setup.answer(100, 2.0)
    setup.clock.now += 20.0

    assert setup.recent.requests_per_s() == 5.0
