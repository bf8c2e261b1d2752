"""The detectors on a real model whose camera gets worse: digits 2.1.0, and scans that its reference has not seen."""

from statistics import median

import numpy as np
import pytest

from harness.digits_drift import Camera, Corruption, Halves, blurred, clean, noisy, pale
from muster_agent.metrics.detectors import Detectors
from muster_agent.metrics.port import DriftState

STREAMS = 40
WINDOWS = 60


@pytest.fixture(scope="module")
def halves() -> Halves:
    return Halves("2.1.0", seed=1)


@pytest.fixture(scope="module")
def undisturbed(halves: Halves) -> Camera:
    return halves.through(clean)


def test_sensor_noise_that_costs_nine_points_is_seen_in_five_windows(halves: Halves, undisturbed: Camera) -> None:
    camera = halves.through(noisy)

    delays = [_windows_until_drift(halves, undisturbed, camera, seed) for seed in range(STREAMS)]

    print(f"accuracy {undisturbed.accuracy:.3f} -> {camera.accuracy:.3f}, windows {sorted(delays)}")
    assert undisturbed.accuracy - camera.accuracy == pytest.approx(0.09, abs=0.02)
    assert median(delays) <= 5, sorted(delays)
    assert max(delays) <= 10, sorted(delays)


@pytest.mark.parametrize("corruption", [blurred, pale])
def test_blur_and_pale_scans_are_seen_as_well(halves: Halves, undisturbed: Camera, corruption: Corruption) -> None:
    camera = halves.through(corruption)

    delays = [_windows_until_drift(halves, undisturbed, camera, seed) for seed in range(STREAMS)]

    print(f"accuracy {undisturbed.accuracy:.3f} -> {camera.accuracy:.3f}, windows {sorted(delays)}")
    assert camera.accuracy < undisturbed.accuracy - 0.02
    assert median(delays) <= 5, sorted(delays)


def test_as_many_clean_streams_raise_no_alarm(halves: Halves, undisturbed: Camera) -> None:
    states = [_after(halves, undisturbed, seed) for seed in range(STREAMS)]

    assert states == [DriftState.QUIET] * STREAMS


def test_when_the_camera_is_cleaned_the_device_says_so(halves: Halves, undisturbed: Camera) -> None:
    detectors, rng = Detectors(halves.reference), np.random.default_rng(7)

    for camera, windows in ((halves.through(noisy), 20), (undisturbed, 150)):
        for mean in camera.windows(rng, windows):
            detectors.window(mean)

    assert [state for state, _ in detectors.take_changes()] == [DriftState.DRIFTING, DriftState.QUIET]


def _windows_until_drift(halves: Halves, before: Camera, camera: Camera, seed: int) -> int:
    """Return how many windows of `camera` it takes, after ten that were clean; WINDOWS when it is not seen."""
    rng = np.random.default_rng(seed)
    detectors = Detectors(halves.reference, chance=rng.random)
    for mean in before.windows(rng, 10):
        detectors.window(mean)
    for number, mean in enumerate(camera.windows(rng, WINDOWS), 1):
        detectors.window(mean)
        if detectors.state is DriftState.DRIFTING:
            return number
    return WINDOWS


def _after(halves: Halves, camera: Camera, seed: int) -> DriftState:
    rng = np.random.default_rng(seed)
    detectors = Detectors(halves.reference, chance=rng.random)
    for mean in camera.windows(rng, 250):
        detectors.window(mean)
    assert not detectors.take_changes()
    return detectors.state
