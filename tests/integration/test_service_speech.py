"""A real stateful model, streamed through sequences over HTTP: it answers as if its state were handed on by hand."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from harness.asking import Answer, Program, program, serving
from harness.endpoint import INLINE, THREADS, Endpoint, served_by
from harness.fleet_of_one import Fleet, Works, free_port
from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.golden import self_test
from muster_agent.serving.table import Served
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.bundle import Variant
from muster_shared.ids import FleetId
from muster_shared.messages import Step
from muster_simulator.workloads import fetch, speech
from muster_simulator.workloads.speech import SpeechRelease

CACHE = Path(__file__).parents[2] / ".cache" / "weights"
SAID = np.concatenate((speech.noise(0.3), speech.voice(1.0), speech.tone(0.3), speech.voice(0.5, 200.0)))
OLD, NEW = "1.0.0", "2.0.0"
VARIANTS = [(OLD, "onnxruntime-fp32"), (NEW, "onnxruntime-fp32"), (NEW, "openvino-fp32")]
ALL_VARIANTS = pytest.mark.parametrize(("version", "variant"), VARIANTS)

Releases = Mapping[str, SpeechRelease]


@pytest.fixture(scope="module")
def releases() -> Releases:
    try:
        return {release.manifest.version: release for release in speech.releases(CACHE)}
    except fetch.WeightsUnavailable as error:
        pytest.skip(str(error))


def load(release: SpeechRelease, variant: str, folder: Path, plan: ServingPlan = INLINE) -> Served:
    manifest = speech.write_release(release, folder)
    chosen = named(release, variant)
    engine = registry.engine(chosen.runtime)
    session = engine.load(
        folder / chosen.files[0], chosen, manifest.inputs, manifest.outputs, threads=1, cache_dir=folder
    )
    return served_by(session, manifest, plan)


def named(release: SpeechRelease, variant: str) -> Variant:
    return next(each for each in release.manifest.variants if each.name == variant)


def say(
    asking: Program, window: speech.Samples, *, starts: bool, sequence: str = "microphone", rate: int | None = None
) -> Answer:
    inputs: list[dict[str, object]] = [
        {"name": "input", "shape": window.shape, "datatype": "FP32", "data": window.ravel().tolist()}
    ]
    if rate is not None:
        inputs.append({"name": "sr", "shape": [], "datatype": "INT64", "data": [rate]})
    parameters = {"sequence_id": sequence, "sequence_start": starts}
    body = {"inputs": inputs, "parameters": parameters, "outputs": [{"name": "output"}]}
    return asking.ask("POST", f"/v2/models/{speech.MODEL}/infer", body)


def rate_of(release: SpeechRelease) -> int | None:
    return speech.RATE_HZ if speech.RATE in release.manifest.inputs else None


def stream(endpoint: Endpoint, release: SpeechRelease, *, forgetful: bool = False) -> list[float]:
    """Return the probability of speech of each window; `forgetful` begins anew each time."""
    with program(endpoint) as asking:
        return [
            say(asking, window, starts=forgetful or not at, rate=rate_of(release)).data[0]
            for at, window in enumerate(speech.windows(SAID))
        ]


def by_hand(release: SpeechRelease) -> list[float]:
    return [float(made["output"].item()) for _, made in speech.reference(release, SAID)]


@ALL_VARIANTS
@pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])
def test_streaming_answers_as_the_model_does_with_its_state_handed_on(
    releases: Releases, version: str, variant: str, plan: ServingPlan, tmp_path: Path
) -> None:
    release = releases[version]

    with serving(load(release, variant, tmp_path, plan)) as endpoint:
        streamed = stream(endpoint, release)

    assert len(streamed) == len(SAID) // speech.NEW
    np.testing.assert_allclose(streamed, by_hand(release), atol=1e-4)


@ALL_VARIANTS
def test_without_its_state_it_answers_otherwise(releases: Releases, version: str, variant: str, tmp_path: Path) -> None:
    release = releases[version]

    with serving(load(release, variant, tmp_path)) as endpoint:
        forgetful = stream(endpoint, release, forgetful=True)

    expected = by_hand(release)
    assert forgetful[0] == pytest.approx(expected[0], abs=1e-4)
    assert float(np.abs(np.array(forgetful) - expected).max()) > 0.3


@ALL_VARIANTS
def test_two_streams_at_once_do_not_hear_each_other(
    releases: Releases, version: str, variant: str, tmp_path: Path
) -> None:
    release = releases[version]
    quiet = list(speech.windows(speech.noise(0.5)))
    loud = list(speech.windows(speech.voice(0.5)))
    alone = {
        "quiet": [float(made["output"].item()) for _, made in speech.reference(release, speech.noise(0.5))],
        "loud": [float(made["output"].item()) for _, made in speech.reference(release, speech.voice(0.5))],
    }
    heard: dict[str, list[float]] = {"quiet": [], "loud": []}

    with serving(load(release, variant, tmp_path)) as endpoint, program(endpoint) as asking:
        for at, pair in enumerate(zip(quiet, loud, strict=True)):
            for name, window in zip(heard, pair, strict=True):
                answer = say(asking, window, starts=not at, sequence=name, rate=rate_of(release))
                heard[name].append(answer.data[0])

    np.testing.assert_allclose(heard["quiet"], alone["quiet"], atol=1e-4)
    np.testing.assert_allclose(heard["loud"], alone["loud"], atol=1e-4)


@ALL_VARIANTS
def test_every_variant_holds_its_golden_cases(releases: Releases, version: str, variant: str, tmp_path: Path) -> None:
    served = load(releases[version], variant, tmp_path)

    report = self_test(served.session, served.manifest, tmp_path / served.manifest.golden.file)
    served.session.close()

    assert report.passed, report.reason
    assert report.cases == speech.GOLDEN_CASES


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_voice_is_told_from_a_tone_and_from_noise(releases: Releases, version: str) -> None:
    release = releases[version]

    heard = {
        name: np.mean([made["output"].item() for _, made in speech.reference(release, samples)])
        for name, samples in {
            "voice": speech.voice(1.0),
            "high voice": speech.voice(1.0, 200.0),
            "tone": speech.tone(1.0),
            "noise": speech.noise(1.0),
        }.items()
    }

    assert min(heard["voice"], heard["high voice"]) > 0.6
    assert max(heard["tone"], heard["noise"]) < 0.1


def test_the_old_generation_is_told_its_rate_which_is_checked(releases: Releases, tmp_path: Path) -> None:
    window = next(speech.windows(SAID))

    with (
        serving(load(releases[OLD], "onnxruntime-fp32", tmp_path)) as endpoint,
        program(endpoint) as asking,
    ):
        without = say(asking, window, starts=True)
        wrong = say(asking, window, starts=True, rate=8000)
        right = say(asking, window, starts=True, rate=speech.RATE_HZ)
        inputs = [tensor["name"] for tensor in asking.ask("GET", f"/v2/models/{speech.MODEL}").json["inputs"]]

    assert (without.status, wrong.status, right.status) == (400, 400, 200)
    assert "sr" in without.error
    assert "sr" in wrong.error
    assert inputs == ["input", "sr"]


@pytest.mark.broker
def test_an_agent_proves_and_streams_both_generations(releases: Releases, tmp_path: Path) -> None:
    for name in ("works", "device", "broker"):
        (tmp_path / name).mkdir()
    works = Works.open(tmp_path / "works", [speech.MODEL])
    window = next(speech.windows(SAID))
    answers = []
    with start_broker(BrokerKind.AUTO, tmp_path / "broker", free_port()) as broker:
        broker.wait_ready(20.0)
        fleet = Fleet(works, broker, FleetId("speech"), tmp_path / "device")
        try:
            for counter, release in enumerate(releases.values(), 1):
                folder = tmp_path / "bundles" / release.manifest.version
                folder.mkdir(parents=True)
                speech.write_release(release, folder)
                published = works.publish(folder)
                fleet.assign(counter, published)
                fleet.wait_for_step(published, Step.SWITCHED)
                asking = Program(fleet.agent.port)
                said = [say(asking, window, starts=not at, rate=rate_of(release)) for at in range(2)]
                answers.append([answer.data[0] for answer in said])
                asking.close()
        finally:
            fleet.close()

    expected = [by_hand(release)[0] for release in releases.values()]
    assert [first for first, _ in answers] == pytest.approx(expected, abs=1e-4)
    assert all(first != second for first, second in answers)


def test_the_licence_and_the_origin_travel_with_the_release(releases: Releases) -> None:
    for release in releases.values():
        assert release.manifest.licence == "MIT"
        assert release.manifest.lineage.source.startswith("silero_vad-")


def test_windows_follow_each_other_with_the_end_of_the_one_before() -> None:
    samples = np.arange(3 * speech.NEW + 100, dtype=np.float32)

    first, second, third = speech.windows(samples)

    assert first.shape == (1, speech.CONTEXT + speech.NEW)
    assert not first[0, : speech.CONTEXT].any()
    np.testing.assert_array_equal(second[0, : speech.CONTEXT], first[0, -speech.CONTEXT :])
    whole = np.concatenate([window[0, speech.CONTEXT :] for window in (first, second, third)])
    np.testing.assert_array_equal(whole, samples[: 3 * speech.NEW])
