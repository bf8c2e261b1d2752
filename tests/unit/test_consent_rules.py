"""The device's own rules, with sensors that say what a test wants."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.updates import R1, R2
from muster_agent.config import load_config
from muster_agent.consent.asking import DeviceConsent
from muster_agent.consent.config import ConsentConfig, problem
from muster_agent.consent.local_time import LocalTime, zone_of
from muster_agent.consent.rules import Check, Decision, Rules
from muster_agent.core.state import Stage
from muster_agent.errors import ConfigInvalid
from muster_shared.ids import Sha256

WAIT_S = 10.0


class Readings:
    """`rules.Sensors` that say what they are told."""

    def __init__(self, cpu: float | None = None, heat: float | None = None, battery: bool | None = None) -> None:
        self.cpu = cpu
        self.heat = heat
        self.battery = battery

    def cpu_percent(self) -> float | None:
        return self.cpu

    def temperature_c(self) -> float | None:
        return self.heat

    def on_battery(self) -> bool | None:
        return self.battery


def decide(
    config: ConsentConfig,
    readings: Readings | None = None,
    stage: Stage = Stage.ACTIVATE,
    rate: float | None = None,
) -> str:
    """Return why not; empty: go on."""
    decision = Rules(config, readings or Readings(), lambda: rate).decide(stage, "digits", "1.0.0")
    return "" if decision.decisive is None else decision.decisive.later


STRICT = ConsentConfig(busy_requests_per_s=20, cpu_percent_max=80, temperature_c_max=70, on_battery=False)


def test_a_device_without_rules_goes_on() -> None:
    assert decide(ConsentConfig()) == ""


def test_what_the_device_cannot_measure_never_defers() -> None:
    assert decide(STRICT) == ""


@pytest.mark.parametrize(
    ("readings", "rate", "why"),
    [
        (Readings(), 21.0, "busy: more than 20 requests/s"),
        (Readings(cpu=81.0), 1.0, "busy: more than 80 % of the processors in use"),
        (Readings(cpu=80.0, heat=70.5), 20.0, "hot: more than 70 °C"),
        (Readings(battery=True), None, "on battery"),
        (Readings(cpu=80.0, heat=70.0, battery=False), 20.0, ""),
    ],
)
def test_the_first_rule_that_says_later_decides(readings: Readings, rate: float | None, why: str) -> None:
    assert decide(STRICT, readings, rate=rate) == why


def test_a_busy_device_may_download() -> None:
    assert decide(STRICT, Readings(cpu=100.0), Stage.DOWNLOAD, rate=1000.0) == ""


def test_a_metered_link_holds_up_downloads_alone(tmp_path: Path) -> None:
    config = ConsentConfig(metered=tmp_path / "metered")
    assert decide(config, stage=Stage.DOWNLOAD) == ""

    (tmp_path / "metered").touch()

    assert decide(config, stage=Stage.DOWNLOAD) == "the link is metered"
    assert decide(config, stage=Stage.ACTIVATE) == ""


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ConsentConfig(hook=("relative",)), "consent.hook"),
        (ConsentConfig(hook=("/bin/true", "a\0b")), "consent.hook"),
        (ConsentConfig(hook_timeout_s=0), "consent.hook_timeout_s"),
        (ConsentConfig(cpu_percent_max=101), "consent.cpu_percent_max"),
        (ConsentConfig(retry_s=float("nan")), "consent.retry_s"),
        (ConsentConfig(metered=Path("metered")), "consent.metered"),
    ],
)
def test_a_wrong_rule_is_named(config: ConsentConfig, field: str) -> None:
    assert (problem(config) or "").startswith(field)


def test_the_table_is_read_from_the_agents_configuration(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    base = (
        'fleet = "f"\ndevice = "d"\ndevice_class = "c"\nbroker_url = "mqtt://127.0.0.1:1883"\n'
        'data_dir = "/tmp/d"\nbootstrap_root = "/tmp/r"\n'
    )
    file.write_text(f'{base}timezone = "Europe/Berlin"\n[consent]\nhook = ["/bin/ask", "-x"]\non_battery = false\n')

    config = load_config(file, {})

    assert config.timezone == "Europe/Berlin"
    assert config.consent == ConsentConfig(hook=("/bin/ask", "-x"), on_battery=False)
    file.write_text(f'{base}timezone = "Europe/Nowhere"\n')
    with pytest.raises(ConfigInvalid, match="timezone"):
        load_config(file, {})


# -- asking ------------------------------------------------------------------------------------------------------------


class Gated(Rules):
    """Rules that take their time, and may fail."""

    def __init__(self, why: str = "") -> None:
        super().__init__(ConsentConfig(), Readings())
        self.why = why
        self.fails = False
        self.asked = 0
        self.gate = threading.Event()

    def decide(self, stage: Stage, model: str, version: str, *, every: bool = False) -> Decision:
        self.asked += 1
        assert self.gate.wait(WAIT_S)
        if self.fails:
            raise RuntimeError("a bug")
        return Decision((Check("hook", self.why, self.why),), 42.0)


class Heard:
    """`asking.Answers`: what the conductor is told."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, Sha256, Stage, str, float]] = []

    def consent_given(self, bundle: Sha256, stage: Stage) -> None:
        self.answers.append(("given", bundle, stage, "", 0.0))

    def consent_deferred(self, bundle: Sha256, stage: Stage, reason: str, retry_after_s: float) -> None:
        self.answers.append(("deferred", bundle, stage, reason, retry_after_s))


def asking(rules: Rules) -> tuple[DeviceConsent, Heard, "queue.Queue[Callable[[], None]]"]:
    posts: queue.Queue[Callable[[], None]] = queue.Queue()
    consent = DeviceConsent(rules, LocalTime("UTC", zone_of("UTC")), lambda: 0.0, posts.put, 300.0)
    heard = Heard()
    consent.attach(heard)
    return consent, heard, posts


def test_what_is_asked_twice_is_answered_once() -> None:
    rules = Gated()
    consent, heard, posts = asking(rules)
    for _ in range(5):
        consent.ask(R1, Stage.ACTIVATE)
    consent.ask(R2, Stage.ACTIVATE)

    rules.gate.set()
    for _ in range(2):
        posts.get(timeout=WAIT_S)()

    assert [answer[:2] for answer in heard.answers] == [("given", R1.bundle_sha256), ("given", R2.bundle_sha256)]
    assert rules.asked == 2


def test_it_can_be_asked_again_once_it_has_answered() -> None:
    rules = Gated("the train is moving")
    consent, heard, posts = asking(rules)
    rules.gate.set()

    for _ in range(2):
        consent.ask(R1, Stage.DOWNLOAD)
        posts.get(timeout=WAIT_S)()

    assert heard.answers == [("deferred", R1.bundle_sha256, Stage.DOWNLOAD, "the train is moving", 42.0)] * 2


def test_rules_that_cannot_be_asked_say_later() -> None:
    rules = Gated()
    rules.fails = True
    rules.gate.set()
    consent, heard, posts = asking(rules)

    consent.ask(R1, Stage.ACTIVATE)
    posts.get(timeout=WAIT_S)()

    (answer,) = heard.answers
    assert answer[0] == "deferred"
    assert answer[4] == 300.0
    assert consent.faults == 1
