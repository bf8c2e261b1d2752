"""Magika's perl: a release that is better on average and much worse for one type of file raises an alert, in two days.

10,000 simulated devices give feedback through the agent's rounding and the mixer's noise; the sums go through ingest
into SQLite, and the alert engine looks. Randomness has a seed, so that the outcome is always the same.
"""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.alerting import sources
from muster_agent.metrics.rounding import offsets, share_out_at
from muster_controller.alerts.engine import Engine, Stores
from muster_controller.alerts.looking import Looking
from muster_controller.alerts.sources import Content
from muster_controller.alerts.telling import Teller
from muster_controller.core.alerts.machine import Alert, State
from muster_controller.core.alerts.rules import SLICE_REGRESSION
from muster_controller.core.metrics.slices import Dimension
from muster_controller.db.alert_store import AlertStore
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.receiver_store import Kind as ReceiverKind
from muster_controller.db.receiver_store import Receiver, ReceiverStore, Waiting
from muster_controller.db.side import SideDatabase
from muster_controller.metrics.ingest import MixedIngest
from muster_controller.mixer.accounting import release_nano
from muster_controller.mixer.batching import Pending, Period
from muster_controller.mixer.noising import mixed
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.operator import init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_controller.releases import Releases
from muster_shared.bundle import Golden, Manifest, Metrics, TensorSpec, Variant, describe_file, digest, encode_manifest
from muster_shared.ids import ModelName
from muster_shared.messages import decode, encode
from muster_shared.metrics import DAY_S, HOUR_S, INPUTS, RHO_DAY, UNITS, Cell, Kind, MixedAck
from muster_shared.topics import MixedChannel, MixedTopic, Topic

MODEL = ModelName("magika")
MIXER = "mixer-1"
DEVICES = 10_000
DAYS = 2
"""Of each release. After one day the alert is there more often than not; after two it is hardly ever missed."""
JUDGED = 5
"""Labelled answers of a device in an hour; 64 units do not go into them evenly."""
BEGAN = 1_800_000_000 - 1_800_000_000 % DAY_S
NOW = BEGAN + 2 * DAYS * DAY_S + 2 * HOUR_S

# The first generation has 113 names, the second 214 in another order: 110 of the first, and perl among them.
BOTH = ("perl", *(f"type-{number}" for number in range(109)))
LABELS = {
    "1.0.0": (*BOTH, "old-1", "old-2", "old-3"),
    "2.0.0": tuple(sorted((*BOTH, *(f"new-{number}" for number in range(104))), key=lambda name: name[::-1])),
}
SEEN = BOTH[:40]
"""What there are files of. Labels that only one release knows are in the feedback of that one alone."""
PERL_SHARE = 25 / 2500
OVERALL = {"1.0.0": 0.872, "2.0.0": 0.965}
"""Of a published model and its successor, on files of an operating system; with perl at 1.0, and at 0.4."""


def shares() -> Mapping[str, float]:
    """Return the share of each type in what is judged."""
    return {"perl": PERL_SHARE, **dict.fromkeys(SEEN[1:], (1 - PERL_SHARE) / (len(SEEN) - 1))}


def accuracies(version: str, perl: float) -> Mapping[str, float]:
    """Return by type how many are right: OVERALL in all when perl is as it is; no other type gets worse."""
    perl_then = 1.0 if version == "1.0.0" else 0.4
    wrong = 1 - (OVERALL[version] - PERL_SHARE * perl_then) / (1 - PERL_SHARE)
    harder = np.linspace(0.2, 1.8, len(SEEN) - 1)  # Some types are harder than others, for both.
    return {"perl": perl, **{name: 1 - wrong * float(each) for name, each in zip(SEEN[1:], harder, strict=True)}}


# -- devices -----------------------------------------------------------------------------------------------------------


@cache
def rounded(counts: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the agent's shares of places with `counts`, one row for each offset that it may draw."""
    groups = [list(counts)]
    return np.array([share_out_at(groups, UNITS, offset)[0] for offset in range(offsets(groups))])


def given(rng: np.random.Generator, chances: NDArray[np.float64]) -> dict[int, int]:
    """Return what all devices give in an hour, units by place; `chances` of each place, which add up to 1."""
    drawn = np.sort(np.searchsorted(np.cumsum(chances)[:-1], rng.random((DEVICES, JUDGED)), side="right"), axis=1)
    is_new = np.diff(drawn, axis=1, prepend=-1) != 0
    patterns = is_new @ (1 << np.arange(JUDGED))
    sums = np.zeros(len(chances), np.int64)
    for pattern in np.unique(patterns):
        rows = patterns == pattern
        begins = np.flatnonzero(is_new[rows][0])
        shared = rounded(tuple(np.diff(begins, append=JUDGED).tolist()))
        units = shared[rng.integers(0, len(shared), rows.sum())]
        np.add.at(sums, drawn[rows][:, begins], units)
    assert sums.sum() == DEVICES * UNITS, "each gives what it has"
    return {int(place): int(sums[place]) for place in np.flatnonzero(sums)}


def feedback(version: str, perl: float) -> NDArray[np.float64]:
    """Return the chance of each place of Kind.FEEDBACK: 2 * true class + (1 if it was right)."""
    labels, right = LABELS[version], accuracies(version, perl)
    chances = np.zeros(2 * len(labels))
    for name, share in shares().items():
        index = labels.index(name)
        chances[2 * index : 2 * index + 2] = share * (1 - right[name]), share * right[name]
    return chances


def published(version: str, perl: float, first: int, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield what the mixer says of each hour, from `first` on, with the noise of the contract on all kinds."""
    below = random.Random(int(rng.integers(1 << 60))).randrange
    cell = Cell(model=MODEL, version=version, device_class="nuc", region="north", classes=len(LABELS[version]))
    chances = feedback(version, perl)
    for start in range(first, first + DAYS * DAY_S, HOUR_S):
        all_plain = {INPUTS.index("plain"): DEVICES * UNITS}
        pending = Pending(DEVICES, {Kind.FEEDBACK: given(rng, chances), Kind.INPUTS: all_plain}, start)
        release, now = release_nano(RHO_DAY), start + 2.5 * HOUR_S
        yield encode(
            mixed(MIXER, Period(start, HOUR_S), cell, pending, number=0, release=release, now=now, below=below)
        )


# -- the controller ----------------------------------------------------------------------------------------------------


@dataclass
class Acks:
    """`ports.Wire` that keeps the acknowledgements."""

    batches: list[str] = field(default_factory=list)

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        assert topic == MixedTopic(MIXER, MixedChannel.ACK)
        self.batches += decode(payload, MixedAck).batches


@dataclass(frozen=True)
class Desk:
    ingest: MixedIngest
    acks: Acks
    engine: Engine
    receivers: ReceiverStore

    def hear(self, messages: Sequence[bytes]) -> None:
        self.ingest.received([(MixedTopic(MIXER, MixedChannel.SUMS), each) for each in messages])

    def look(self) -> tuple[list[Alert], list[Waiting]]:
        """Return the alerts that fire, and the notices that wait for a receiver."""
        found = self.engine.look()
        return [each for each in found if each.state is State.FIRING], self.receivers.due(10)


@contextmanager
def desk(folder: Path) -> Iterator[Desk]:
    """What ingests and looks, with both releases published, and one receiver that is never told."""
    now = lambda: float(NOW)  # noqa: E731 # Short, and named.
    where = folder / "muster.db"
    with SqlLedger(where, now) as ledger, SideDatabase(find_database(where)) as side:
        metrics, acks = MetricsStore(side), Acks()
        alerts, receivers = AlertStore(side, now), ReceiverStore(side, now)
        content = Content(metrics, released(folder), now)
        seen = sources(ledger, ObjectiveStore(side, now), content)
        engine = Engine(
            Stores(alerts, receivers),
            lambda: Looking(seen, now),
            Teller(receivers, {}, now, random.Random(1)),
            fleet="harbour",
            leads=lambda: True,
            changed=lambda _: None,
            clock=now,
        )
        receivers.add(Receiver("ops", ReceiverKind.WEBHOOK, "http://127.0.0.1:9/", secret="", created_by="desk"))
        yield Desk(MixedIngest(metrics, acks, now), acks, engine, receivers)


def released(folder: Path) -> Releases:
    """Publish both releases with their labels, as the offline keys sign them."""
    now = datetime.now(UTC)
    offline = init_operator(folder / "operator", [MODEL], create_online_keys(folder), now)
    releases = Releases(TufRepository(folder), BlobStore(folder / "blobs"))
    releases.accept_offline(offline.root, offline.targets, offline.keys, now)
    current = None
    for number, (version, labels) in enumerate(LABELS.items(), 1):
        files = {"model.onnx": version.encode(), "golden.npz": b"cases"}
        tensor = TensorSpec(name="bytes", datatype="INT32", shape=(-1, 2048))
        manifest = Manifest(
            model=MODEL,
            version=version,
            release=number,
            inputs=(tensor,),
            outputs=(tensor,),
            files=tuple(describe_file(name, raw) for name, raw in files.items()),
            variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
            golden=Golden(file="golden.npz"),
            metrics=Metrics(allow=(Kind.FEEDBACK, Kind.INPUTS)),
            labels=labels,
        )
        bundle = folder / f"bundle-{version}"
        bundle.mkdir()
        raw = encode_manifest(manifest)
        for name, content in {**files, "bundle.json": raw}.items():
            (bundle / name).write_bytes(content)
            releases.blobs.put(io.BytesIO(content), digest(content), len(content))
        current = sign_release(folder / "operator", bundle, current, now).metadata
        releases.publish(MODEL, raw, current, now)
    return releases


def told(folder: Path, perl_after: float, seed: int = 1) -> tuple[list[Alert], list[Waiting]]:
    """Let both releases serve for DAYS, the second with so much of perl right; return what there is to tell."""
    rng = np.random.default_rng(seed)
    messages = [*published("1.0.0", 1.0, BEGAN, rng), *published("2.0.0", perl_after, BEGAN + DAYS * DAY_S, rng)]
    with desk(folder) as at:
        at.hear(messages)
        assert len(set(at.acks.batches)) == at.ingest.taken == len(messages), "all of it was believed, and is kept"
        return at.look()


# -- the case ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(OVERALL))
def test_the_two_releases_are_as_good_as_those_that_were_published(version: str) -> None:
    right = accuracies(version, perl=1.0 if version == "1.0.0" else 0.4)

    assert sum(shares().values()) == pytest.approx(1.0)
    assert sum(share * right[name] for name, share in shares().items()) == pytest.approx(OVERALL[version])
    assert all(right[name] >= accuracies("1.0.0", 1.0)[name] for name in SEEN[1:] if version == "2.0.0")
    assert feedback(version, 1.0).sum() == pytest.approx(1.0)


def test_perl_that_fell_shows_up_as_an_alert_although_the_average_improved(tmp_path: Path) -> None:
    alerts, notices = told(tmp_path, perl_after=0.4)

    (alert,) = alerts
    assert (alert.rule, alert.subject) == (SLICE_REGRESSION, "magika/2.0.0")
    assert (alert.facts["dimension"], alert.facts["slice"]) == (Dimension.CLASS, "perl")
    assert (alert.facts["hidden"], alert.facts["slices_worse"]) == (True, 1)
    assert "accuracy on class perl went from" in alert.summary
    assert "although the average went from 87." in alert.summary
    assert alert.facts["overall_before"] == pytest.approx(OVERALL["1.0.0"], abs=0.02)
    assert alert.facts["overall_after"] == pytest.approx(OVERALL["2.0.0"], abs=0.02)
    assert float(str(alert.facts["before"])) > 0.8
    assert float(str(alert.facts["after"])) < 0.6
    (notice,) = notices
    assert notice.receiver == "ops"
    assert notice.body.type == "alert.firing"
    assert "perl" in notice.body.text


def test_the_same_release_without_the_fall_of_perl_raises_nothing(tmp_path: Path) -> None:
    assert told(tmp_path, perl_after=1.0) == ([], [])
