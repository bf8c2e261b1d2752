"""The digits workload: four releases trained here, no better and no worse than they claim to be."""

import io

import numpy as np
import pytest

from muster_shared.bundle import TensorSpec
from muster_simulator.workloads import catalogue, digits, inference
from muster_simulator.workloads.labelled import InputUnknown
from muster_simulator.workloads.spec import ReleaseSpec

Releases = dict[str, ReleaseSpec]


@pytest.fixture(scope="module")
def releases() -> Releases:
    return {spec.version: spec for spec in digits.releases()}


def test_the_split_is_the_one_that_the_cards_name() -> None:
    data = digits.split()

    assert data.train_images.shape == (1200, 1, 8, 8)
    assert data.test_images.shape == (597, 1, 8, 8)
    assert data.train_images.min() == 0.0
    assert data.train_images.max() == 1.0


def test_raw_pixels_encode_to_the_images_that_were_measured() -> None:
    labelled = digits.inputs()

    batch = labelled.batch(digits.INPUT)

    np.testing.assert_array_equal(batch, digits.split().test_images)


def test_a_version_with_other_inputs_is_refused_and_not_guessed_at() -> None:
    flat = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 64))

    with pytest.raises(InputUnknown, match="no way is known to make FP32"):
        digits.inputs().batch(flat, [0])


@pytest.mark.parametrize(
    ("version", "low", "high"),
    [("1.0.0", 0.93, 0.955), ("2.0.0", 0.985, 1.0), ("2.1.0", 0.985, 1.0), ("3.0.0", 0.7, 0.92)],
)
def test_each_release_is_as_good_as_its_story(releases: Releases, version: str, low: float, high: float) -> None:
    accuracies = [proof.accuracy for proof in releases[version].proofs]

    assert all(low <= accuracy <= high for accuracy in accuracies), accuracies


def test_every_measured_claim_holds_on_every_variant(releases: Releases) -> None:
    for version in ("1.0.0", "2.0.0", "2.1.0"):
        spec = releases[version]

        assert spec.slo.accuracy is not None
        assert all(spec.slo.accuracy <= proof.accuracy < spec.slo.accuracy + 0.02 for proof in spec.proofs)


def test_the_regression_claims_what_its_parent_measured(releases: Releases) -> None:
    assert releases["3.0.0"].slo.accuracy == releases["2.1.0"].slo.accuracy
    assert releases["3.0.0"].accuracy < releases["2.1.0"].accuracy - 0.06
    assert "not measured again" in releases["3.0.0"].card


def test_the_regression_is_confident_so_confidence_does_not_give_it_away(releases: Releases) -> None:
    spec = releases["3.0.0"]
    network = inference.load(spec.variants[0], spec.content("model.int8.onnx"))

    outputs = inference.run(network, digits.inputs().batch(digits.INPUT))

    assert outputs.max(axis=1).mean() > 0.75


def test_int8_is_smaller_and_no_worse(releases: Releases) -> None:
    both, smaller = releases["2.0.0"], releases["2.1.0"]

    assert {variant.name for variant in both.variants} == {
        "onnxruntime-fp32",
        "openvino-fp32",
        "onnxruntime-int8",
        "openvino-int8",
    }
    assert len(smaller.content("model.int8.onnx")) < len(both.content("model.onnx")) / 2
    assert smaller.accuracy >= both.accuracy - 0.005


def test_golden_cases_are_not_among_the_traffic(releases: Releases) -> None:
    cases = np.load(_golden(releases["1.0.0"]))["input.pixels"]

    traffic = {image.tobytes() for image in digits.inputs().batch(digits.INPUT)}

    assert len(cases) == 16
    assert not traffic & {case.tobytes() for case in cases}


def test_golden_cases_are_clear_so_that_rounding_cannot_flip_them(releases: Releases) -> None:
    for spec in releases.values():
        ranked = np.sort(np.load(_golden(spec))["output.probabilities"], axis=1)

        assert (ranked[:, -1] - ranked[:, -2]).min() >= 0.1


def test_outcomes_are_the_truth_behind_the_measured_accuracy(releases: Releases) -> None:
    for spec in releases.values():
        outcomes = catalogue.outcomes(spec, spec.variants[-1].name)

        assert outcomes.dtype == np.bool_
        assert len(outcomes) == 597
        assert outcomes.mean() == pytest.approx(spec.proofs[-1].accuracy)


def test_building_again_gives_the_same_bytes(releases: Releases) -> None:
    again = {spec.version: spec for spec in digits.releases()}

    assert {version: spec.manifest() for version, spec in again.items()} == {
        version: spec.manifest() for version, spec in releases.items()
    }


def test_release_counters_only_rise(releases: Releases) -> None:
    assert [spec.release for spec in releases.values()] == [1, 2, 3, 4]


def _golden(spec: ReleaseSpec) -> io.BytesIO:
    return io.BytesIO(spec.content(spec.golden.file))
