"""What the metrics tell, through the API of a whole controller, from messages on its broker on."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from harness.desk import FLEET, MODEL, Desk, is_problem, local_token, open_desk, until
from harness.noised import cell, mixer_state, noised
from muster_controller.cli.main import app
from muster_controller.core.metrics.series import HOST
from muster_controller.db.engine import find_database
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.side import SideDatabase
from muster_shared import topics
from muster_shared.ids import DeviceId, Sha256
from muster_shared.link import Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import Hardware, HostTelemetry, ReleaseRef, Twin, TwinModel, encode
from muster_shared.metrics import DAY_S, HOUR_S, INPUTS, Cell, Kind, Mixed, MixedAck, MixerState, sigma
from muster_shared.topics import Channel, DeviceTopic, MixedChannel, MixedTopic

DEVICES = 10_000
SINCE = int(time.time()) // DAY_S * DAY_S - 2 * DAY_S  # The controller looks at the clock, and believes no future.
UNTIL = SINCE + DAY_S


class Mixer:
    """A mixer that says what it is told to, and hears its acknowledgements."""

    def __init__(self, broker_url: str, name: str = "mixer-a") -> None:
        self.name = name
        self.acked: set[str] = set()
        self._link = Link(
            LinkConfig(broker=parse_broker_url(broker_url), client_id=f"{name}-{random.getrandbits(32):x}"),
            self._on_item,
            rng=random.Random(1),
        )
        self._link.subscribe([topics.build(FLEET, MixedTopic(name, MixedChannel.ACK))])
        self._link.start()

    def close(self) -> None:
        self._link.stop(1.0)

    def say(self, message: Mixed | MixerState) -> None:
        channel = MixedChannel.SUMS if isinstance(message, Mixed) else MixedChannel.STATE
        self._link.publish(
            topics.build(FLEET, MixedTopic(self.name, channel)),
            encode(message),
            qos=1,
            retain=channel is MixedChannel.STATE,
        )

    def say_twin(self, twin: Twin) -> None:
        topic = topics.build(FLEET, DeviceTopic(twin.device, Channel.TWIN))
        self._link.publish(topic, encode(twin), qos=1, retain=True)

    def _on_item(self, item: LinkItem) -> None:
        match item:
            case Received(_, payload, _, _, token):
                self.acked |= set(msgspec.json.decode(payload, type=MixedAck).batches)
                self._link.ack(token)
            case _:
                pass


def votes(right: float, worse: float, shares: float) -> dict[Kind, list[float]]:
    """What 10,000 devices give in an hour: two classes, of which the second is right so often (`worse`)."""
    first, second = DEVICES * shares, DEVICES * (1 - shares)
    latency = [0.0] * 128
    latency[50] = latency[51] = DEVICES / 2
    return {
        Kind.CLASSES: [first, second],
        Kind.CONFIDENCE: [0.0] * 18 + [DEVICES / 2, DEVICES / 2],
        Kind.LATENCY: latency,
        Kind.INPUTS: [DEVICES * 0.95, 0, 0, 0, 0, DEVICES * 0.05, 0, 0],
        Kind.DRIFT: [DEVICES * 0.9, DEVICES * 0.1, 0, 0],
        Kind.FEEDBACK: [first * (1 - right), first * right, second * (1 - worse), second * worse, 0],
    }


def published(rng: Random, number: int, of: Cell, given: dict[Kind, list[float]]) -> Mixed:
    return Mixed(
        batch=f"b-{of.version.replace('.', '-')}-{number}",
        mixer="mixer-a",
        cell=of,
        period_start=SINCE + number * HOUR_S,
        period_s=HOUR_S,
        devices=DEVICES,
        sums={kind: noised(rng, kind, each) for kind, each in given.items()},
        sigma={kind: sigma(kind) for kind in given},
        mixed_at=SINCE + (number + 2.0) * HOUR_S,
    )


STATE = mixer_state(windows=480_000, suppressed=3)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    rng = Random(1)
    with open_desk(tmp_path_factory.mktemp("metrics")) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("1.1.0", 2)
        with closing(Mixer(desk.controller.broker_url)) as mixer:
            names = set()
            for number in range(12):
                for version, given in (("1.0.0", votes(0.9, 0.95, 0.9)), ("1.1.0", votes(0.98, 0.5, 0.9))):
                    message = published(rng, number, cell(version, classes=2), given)
                    names.add(message.batch)
                    mixer.say(message)
            mixer.say(STATE)
            until(lambda: names <= mixer.acked)
            until(lambda: desk.get("/metrics/mixers")["mixers"])
        yield desk


def get(desk: Desk, path: str, **params: Any) -> Any:
    return desk.get(f"/metrics/{MODEL}/{path}", **{"from": SINCE, "to": UNTIL, **params})


def figure(answer: Any, name: str) -> dict[str, Any]:
    (found,) = [each["figure"] for each in answer["figures"] if each["name"] == name]
    return dict(found)


def test_what_there_is_is_listed_by_model_and_cell(desk: Desk) -> None:
    (model,) = desk.get("/metrics/models")["models"]

    assert model["model"] == MODEL
    assert [(each["version"], each["devices"], len(each["kinds"])) for each in model["cells"]] == [
        ("1.0.0", DEVICES, 6),
        ("1.1.0", DEVICES, 6),
    ]


def test_shares_of_classes_come_with_their_interval_and_price_by_hour_and_over_all(desk: Desk) -> None:
    answer = get(desk, "classes", version="1.0.0")

    found = figure(answer, "0")
    assert found["value"] == pytest.approx(0.9, abs=0.01)
    assert found["low"] < 0.9 < found["high"]
    assert (found["devices"], found["periods"]) == (DEVICES, 12)
    assert found["rho"] == pytest.approx(12 * 0.1 / 25 * 0.64)
    assert len(answer["points"]) == 12
    assert answer["points"][0]["at"] == SINCE
    assert answer["points"][0]["figures"][0]["figure"]["periods"] == 1


def test_days_are_there_as_well_as_hours(desk: Desk) -> None:
    answer = desk.get(f"/metrics/{MODEL}/classes", **{"from": SINCE, "to": UNTIL, "step": "day"})

    assert len(answer["points"]) == 1
    assert figure(answer, "0")["periods"] == 12


def test_every_kind_answers(desk: Desk) -> None:
    assert figure(get(desk, "accuracy", version="1.0.0"), "all")["value"] == pytest.approx(0.905, abs=0.02)
    assert figure(get(desk, "accuracy", version="1.1.0"), "1")["value"] == pytest.approx(0.5, abs=0.1)
    assert figure(get(desk, "confidence"), "mean")["value"] == pytest.approx(0.95, abs=0.02)
    assert figure(get(desk, "latency"), "p50")["value"] == pytest.approx(2 ** (51 / 4) / 1000, rel=0.2)
    assert figure(get(desk, "inputs"), "not_answered")["value"] == pytest.approx(0.05, abs=0.02)
    assert figure(get(desk, "drift"), "drifting")["value"] == pytest.approx(0.1, abs=0.02)
    assert {each["name"] for each in get(desk, "inputs")["figures"]} == {*INPUTS, "not_answered"}


def test_nothing_was_measured_there_is_unknown_and_not_zero(desk: Desk) -> None:
    answer = get(desk, "accuracy", device_class="no-such")

    assert answer["points"] == []
    assert figure(answer, "all")["value"] is None


def test_releases_are_compared_and_the_slice_that_got_worse_is_named(desk: Desk) -> None:
    compared = get(desk, "compare", before="1.0.0", after="1.1.0")
    found = get(desk, "slices", before="1.0.0", after="1.1.0")

    accuracy = next(each for each in compared["figures"] if each["name"] == "accuracy")
    assert accuracy["difference"]["value"] > 0.01
    assert accuracy["difference"]["p"] < 0.05
    assert found["regressions"] == 1
    worst = found["slices"][0]
    assert (worst["dimension"], worst["name"], worst["is_hidden"]) == ("class", "1", True)
    assert worst["p_adjusted"] < 0.001


def test_two_device_classes_of_one_release_are_compared(desk: Desk) -> None:
    same = get(desk, "compare", before="1.0.0", after="1.0.0", device_class="pi5-cpu", after_class="pi5-cpu")
    other = get(desk, "compare", before="1.0.0", after="1.0.0", device_class="pi5-cpu", after_class="nuc-cpu")

    assert same["figures"][0]["difference"]["value"] == 0.0
    assert other["figures"][0]["before"]["value"] is not None
    assert other["figures"][0]["after"]["value"] is None


def test_mixers_say_what_they_took_and_what_is_left_of_the_budget(desk: Desk) -> None:
    (mixer,) = desk.get("/metrics/mixers")["mixers"]

    assert (mixer["mixer"], mixer["windows"], mixer["suppressed"]) == ("mixer-a", 480_000, 3)
    assert mixer["budgets"] == [
        {"day": "2024-10-04", "rho_spent": 0.04, "rho_budget": 0.1, "eps_spent": pytest.approx(1.527, abs=0.01)}
    ]


def test_the_statement_has_the_parameters_in_force_as_fields_and_in_words(desk: Desk) -> None:
    found = desk.get("/metrics/statement")

    assert found["eps_day"] == pytest.approx(2.45, abs=0.01)
    assert found["eps_30_days"] == pytest.approx(15.9, abs=0.1)
    assert [(each["version"], each["allow"]) for each in found["releases"]] == [("1.0.0", []), ("1.1.0", [])]
    assert found["mixers"][0]["problems"] == []
    text = desk.http.get("/metrics/statement.md")
    assert text.headers["content-type"].startswith("text/markdown")
    for words in ("eps = 2.45 a day", "15.9 over 30 days", "at least 20 devices", "pseudonymous at best", "mixer-a"):
        assert words in text.text
    assert text.text.splitlines()[0] == f"# Privacy statement of fleet {FLEET}"


def test_operational_series_are_not_for_those_who_see_a_part(desk: Desk) -> None:
    scoped = desk.hire("scoped", "viewer", "site=oslo")

    assert is_problem(scoped.get(f"/metrics/{MODEL}/operations"), 403, "forbidden")
    assert is_problem(scoped.get("/metrics/headroom"), 403, "forbidden")
    assert scoped.get("/metrics/models").status_code == 200


def said(sequence: int, requests: int) -> Twin:
    release = ReleaseRef(model=MODEL, version="1.0.0", release=1, bundle_sha256=Sha256("0" * 64), bundle_length=10)
    return Twin(
        device=DeviceId("dev-1"),
        sent_at=float(sequence),
        boot="b",
        sequence=sequence,
        agent_version="1.0.0",
        counter=0,
        hardware=Hardware(device_class="pi5-cpu", arch="aarch64"),
        models=(TwinModel(model=MODEL, phase="idle", active=release, requests=requests, errors=sequence),),
        host=HostTelemetry(cpu_percent=40.0),
    )


def test_what_twins_count_is_in_the_series_when_the_controller_ends(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk, closing(Mixer(desk.controller.broker_url, "devices")) as link:
        for sequence, requests in ((1, 100), (2, 160), (3, 170)):
            link.say_twin(said(sequence, requests))

            def is_there(wanted: int = requests) -> bool:
                found = desk.get("/devices")["devices"]
                return bool(found) and desk.get("/devices/dev-1")["slots"][0]["requests"] == wanted

            until(is_there)

    with SideDatabase(find_database(tmp_path / "data" / "muster.db")) as side:
        store = MetricsStore(side)
        points = store.series(MODEL, DAY_S)
        whole = store.series(HOST, DAY_S)
    assert sum(each.requests for each in points) == 70
    assert sum(each.errors for each in points) == 2
    assert {(each.group.version, each.group.device_class, each.devices) for each in points} == {("1.0.0", "pi5-cpu", 1)}
    assert whole[0].cpu_percent_mean == 40.0


def test_viewers_may_look_and_nobody_else(desk: Desk) -> None:
    viewer = desk.hire("viewer", "viewer")

    assert viewer.get("/metrics/statement").status_code == 200
    assert viewer.get(f"/metrics/{MODEL}/operations").json()["points"] == []
    assert viewer.get("/metrics/headroom").status_code == 200


def muster(desk: Desk, *words: str) -> Any:
    environment = {"COLUMNS": "200", "MUSTER_TOKEN": local_token(desk.controller.data), "MUSTER_URL": None}
    return CliRunner(env=environment).invoke(app, ["--url", desk.controller.url, "metrics", *words])


def test_the_command_line_shows_a_model_with_its_intervals(desk: Desk) -> None:
    found = muster(desk, MODEL, "--version", "1.0.0", "--since", "4d ago")

    assert found.exit_code == 0, found.output
    assert "accuracy, of labelled ones" in found.output
    assert " … " in found.output
    assert "█" in found.output
    assert json.loads(muster(desk, MODEL, "--json", "--since", "4d ago").output)["classes"]["model"] == MODEL


def test_the_command_line_names_the_slice_that_got_worse(desk: Desk) -> None:
    found = muster(desk, "slices", MODEL, "1.0.0", "1.1.0")

    assert found.exit_code == 0, found.output
    assert "class 1" in found.output
    assert "WORSE, and the average is not" in found.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "pi5-cpu"),
        (["compare", MODEL, "1.0.0", "1.1.0", "--after-class", "pi5-cpu"], "accuracy"),
        (["mixers"], "eps 1.5"),
        (["headroom"], "No device has told"),
        (["statement"], "# Privacy statement of fleet test"),
    ],
)
def test_every_command_has_its_table(desk: Desk, words: list[str], said: str) -> None:
    found = muster(desk, *words)

    assert found.exit_code == 0, found.output
    assert said in found.output
    assert json.loads(muster(desk, *words, "--json").output)


def test_a_time_that_is_none_and_a_model_that_is_not_there_are_said_in_a_line(desk: Desk) -> None:
    assert muster(desk, MODEL, "--since", "yesterdayish").exit_code == 1
    assert muster(desk, "slices", MODEL, "1.0.0", "9.9.9").exit_code == 4
    assert "error: there is no release" in muster(desk, "slices", MODEL, "1.0.0", "9.9.9").output


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("no-such/classes", 404, "not-found"),
        ("A B/classes", 422, "name-invalid"),
        (f"{MODEL}/classes?from=10&to=5", 422, "name-invalid"),
        (f"{MODEL}/classes?from=0&to=1e9", 422, "name-invalid"),
        (f"{MODEL}/classes?version=1", 422, "name-invalid"),
        (f"{MODEL}/classes?from=nan", 422, "request-invalid"),
        (f"{MODEL}/classes?step=week", 422, "request-invalid"),
        (f"{MODEL}/nothing", 404, "not-found"),
        (f"{MODEL}/compare?before=1.0.0&after=9.9.9", 404, "not-found"),
        (f"{MODEL}/slices?before=1.0.0", 422, "request-invalid"),
        ("no-such/operations", 404, "not-found"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_that_says_why(desk: Desk, path: str, status: int, kind: str) -> None:
    assert is_problem(desk.http.get(f"/metrics/{path}"), status, kind)


# -- the page ----------------------------------------------------------------------------------------------------------


def page(desk: Desk, path: str, status: int = 200) -> str:
    token = local_token(desk.controller.data)
    url, headers = f"{desk.controller.url}{path}", {"Authorization": f"Bearer {token}", "Accept": "text/html"}
    answer = httpx.get(url, headers=headers, trust_env=False)
    assert answer.status_code == status, answer.text[:500]
    return answer.text


def test_the_page_of_a_model_shows_figures_timelines_and_the_slice_that_got_worse(desk: Desk) -> None:
    shown = page(desk, f"/models/{MODEL}/metrics?days=30")

    assert "Right answers" in shown
    assert shown.count('data-plot="plot"') == 4
    assert shown.count('"band":[[') == 4
    assert "1.1.0 against 1.0.0" in shown
    assert "Worse where it counts" in shown
    assert 'value="0.400"' in shown  # Of the day's budget.


def test_the_page_of_a_model_that_sent_nothing_says_why_and_one_of_no_model_is_not_found(desk: Desk) -> None:
    shown = page(desk, f"/models/{MODEL}/metrics?version=9.9.9")

    assert "Nothing has come from a mixer" in shown
    assert "no-such" in page(desk, "/models/no-such/metrics", 404)


def test_the_privacy_page_says_what_is_in_force_and_the_alert_and_review_pages_answer(desk: Desk) -> None:
    privacy, alerts, review = page(desk, "/privacy"), page(desk, "/alerts"), page(desk, "/reviews")

    assert "2.45" in privacy
    assert "**" not in privacy
    assert "Objectives" in alerts
    assert "Week" in review


def test_every_runbook_is_a_page_and_what_is_none_is_not_found(desk: Desk) -> None:
    drift, key = page(desk, "/runbooks/alert-drift"), page(desk, "/runbooks/lost-key")

    assert "What to do" in drift
    assert "<pre>" in drift
    assert "```" not in drift + key
    page(desk, "/runbooks/no-such", 404)
    page(desk, "/runbooks/..%2F..%2Fetc", 404)
