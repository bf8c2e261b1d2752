"""The reference workloads, built for real: bundles on disk, held against both engines, and magika's two generations."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from muster_shared.bundle import Manifest, TensorSpec, Variant, parse_manifest
from muster_shared.errors import FileTampered
from muster_shared.ids import ModelName, Sha256
from muster_simulator.workloads import catalogue, fetch, inference, magika, samples
from muster_simulator.workloads.labelled import InputUnknown
from muster_simulator.workloads.spec import ReleaseSpec, write_release

CACHE = Path(__file__).parents[2] / ".cache" / "weights"

Releases = dict[tuple[ModelName, str], ReleaseSpec]


@pytest.fixture(scope="session")
def weights() -> Path:
    """The cache with both wheels in it; without a network there is nothing to test here."""
    try:
        fetch.wheel("0.5.1", CACHE)
        fetch.wheel("1.0.3", CACHE)
    except fetch.WeightsUnavailable as error:
        pytest.skip(str(error))
    return CACHE


@pytest.fixture(scope="session")
def releases(weights: Path) -> Releases:
    return {
        (spec.model, spec.version): spec for model in catalogue.MODELS for spec in catalogue.releases(model, weights)
    }


@pytest.fixture(scope="session")
def bundles(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Manifest]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        root / model / version: write_release(spec, root / model / version)
        for (model, version), spec in releases.items()
    }


def test_every_bundle_parses_and_its_files_are_what_it_names(bundles: dict[Path, Manifest]) -> None:
    for folder, written in bundles.items():
        manifest = parse_manifest((folder / "bundle.json").read_bytes())

        assert manifest == written
        assert all(tensor.shape[0] == -1 for tensor in (*manifest.inputs, *manifest.outputs))
        assert manifest.outputs[0].shape[1] == len(manifest.labels)
        assert len(set(manifest.labels)) == len(manifest.labels)
        for file in manifest.files:
            assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
        assert {path.name for path in folder.iterdir()} == {"bundle.json", *(file.path for file in manifest.files)}


def test_every_release_passes_its_own_golden_cases_on_both_engines(bundles: dict[Path, Manifest]) -> None:
    for folder, manifest in bundles.items():
        assert {variant.runtime for variant in manifest.variants} == {"onnxruntime", "openvino"}
        for variant in manifest.variants:
            expected, actual = _golden(folder, manifest, variant)

            np.testing.assert_allclose(actual, expected, rtol=manifest.golden.rtol, atol=manifest.golden.atol)
            agreement = (actual.argmax(axis=1) == expected.argmax(axis=1)).mean()
            assert agreement >= manifest.golden.argmax_agreement, (folder, variant.name)


def test_openvino_is_pinned_to_full_precision(releases: Releases) -> None:
    pinned = [variant for spec in releases.values() for variant in spec.variants if variant.runtime == "openvino"]

    assert all(variant.options == {"INFERENCE_PRECISION_HINT": "f32"} for variant in pinned)


@pytest.mark.parametrize(("version", "low", "high"), [("1.0.0", 0.83, 0.92), ("2.0.0", 0.93, 1.0), ("3.0.0", 0.8, 0.9)])
def test_each_magika_release_is_as_good_as_its_story(releases: Releases, version: str, low: float, high: float) -> None:
    accuracies = [proof.accuracy for proof in releases[magika.MODEL, version].proofs]

    assert all(low <= accuracy <= high for accuracy in accuracies), accuracies


def test_the_regressions_are_worse_on_labelled_inputs_yet_claim_what_their_parents_do(releases: Releases) -> None:
    for model, good in ((ModelName("digits"), "2.1.0"), (magika.MODEL, "2.0.0")):
        before, after = releases[model, good], releases[model, "3.0.0"]

        assert after.slo.accuracy == before.slo.accuracy
        assert catalogue.outcomes(after).mean() < catalogue.outcomes(before).mean() - 0.06


def test_the_masked_tail_has_no_effect(releases: Releases) -> None:
    spec = releases[magika.MODEL, "3.0.0"]
    inputs = magika.inputs().batch(magika.INPUT_V2, range(8))
    other_tails = inputs.copy()
    other_tails[:, 1024:] = 65
    network = inference.load(spec.variants[0], spec.content("model.onnx"))

    np.testing.assert_array_equal(network(inputs), network(other_tails))


def test_a_client_that_follows_the_metadata_sends_each_version_what_it_takes(releases: Releases) -> None:
    content = b"  #!/bin/sh\necho hello\n"
    for version, width, kind in (("1.0.0", 1536, np.float32), ("2.0.0", 2048, np.int32), ("3.0.0", 2048, np.int32)):
        sent = magika.features(releases[magika.MODEL, version].inputs[0], content)

        assert sent.shape == (1, width)
        assert sent.dtype == kind


def test_an_unknown_generation_is_refused_and_not_guessed_at() -> None:
    third = TensorSpec(name="bytes", datatype="INT32", shape=(-1, 4096))

    with pytest.raises(InputUnknown, match="teach the workload"):
        magika.features(third, b"content")


def test_first_generation_features_of_a_short_file_are_stripped_and_padded() -> None:
    [row] = magika.features(magika.INPUT_V1, b" \nabc\n ")

    head, middle, tail = row[:512], row[512:1024], row[1024:]
    assert list(head[:4]) == [97, 98, 99, 256]
    # 509 tokens are missing: 254 before, 255 after.
    assert list(middle[253:258]) == [256, 97, 98, 99, 256]
    assert list(tail[-4:]) == [256, 97, 98, 99]


def test_first_generation_features_of_a_long_file_take_the_middle_of_what_is_not_stripped() -> None:
    content = b" " * 100 + bytes(range(33, 133)) * 100 + b"\n" * 20

    [row] = magika.features(magika.INPUT_V1, content)

    # 10,000 bytes are left after the first 100, so the middle 512 start at 100 + (10000 - 512) / 2 = 4844.
    assert list(row[:3]) == [33, 34, 35]
    assert bytes(row[512:1024].astype(np.uint8)) == content[4844:5356]
    assert row[-1] == 132


def test_second_generation_features_strip_one_block_at_either_end() -> None:
    content = b"\t" + b"a" * 3000 + b"b" * 3000 + b"\n" * 5000

    [row] = magika.features(magika.INPUT_V2, content)

    assert set(row[:1024]) == {97}
    # The last block is white space alone, so nothing of it is left.
    assert set(row[1024:]) == {256}


def test_no_type_dominates_the_sample_and_its_contents_differ() -> None:
    drawn, golden = samples.draw()

    truths = [sample.truth for sample in drawn]
    assert 150 <= len(drawn) <= 250
    assert len(set(truths)) >= 25
    assert max(map(truths.count, truths)) <= len(drawn) / 10
    assert not {sample.content for sample in drawn} & {sample.content for sample in golden}


def test_building_magika_again_gives_the_same_bytes(releases: Releases, weights: Path) -> None:
    for spec in magika.releases(weights):
        assert spec.manifest() == releases[spec.model, spec.version].manifest()


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, offline: None) -> None:
    with pytest.raises(fetch.WeightsUnavailable) as raised:
        magika.releases(tmp_path / "cache")

    assert "magika-0.5.1-py3-none-any.whl is not in" in str(raised.value)
    assert "connect to a package index once, or copy the wheel there" in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_filled_cache_needs_no_network(weights: Path, offline: None) -> None:
    assert fetch.wheel("1.0.3", weights).is_file()


def test_a_damaged_wheel_in_the_cache_is_not_used(tmp_path: Path, weights: Path, offline: None) -> None:
    whole = fetch.wheel("0.5.1", weights).read_bytes()
    (tmp_path / "magika-0.5.1-py3-none-any.whl").write_bytes(whole[:-1])

    with pytest.raises(fetch.WeightsUnavailable):
        fetch.wheel("0.5.1", tmp_path)


def test_a_model_that_is_not_the_expected_one_is_refused(weights: Path) -> None:
    with pytest.raises(FileTampered, match="fetch it again"):
        fetch.read_member(fetch.wheel("0.5.1", weights), "magika/models/standard_v1/model.onnx", Sha256("0" * 64))


def test_an_unknown_workload_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(catalogue.WorkloadUnknown, match="digits and magika"):
        catalogue.releases(ModelName("speech"), tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No index, no configuration of this machine's pip."""
    empty = tmp_path / "no-wheels"
    empty.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def _golden(folder: Path, manifest: Manifest, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Return the golden outputs, and those that `variant` gives here."""
    with np.load(folder / manifest.golden.file, allow_pickle=False) as cases:
        inputs = cases[f"input.{manifest.inputs[0].name}"]
        expected = cases[f"output.{manifest.outputs[0].name}"]
    network = inference.load(variant, (folder / variant.files[0]).read_bytes())
    return expected, inference.run(network, inputs)
