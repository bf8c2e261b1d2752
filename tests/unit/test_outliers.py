"""The ring of odd inputs: bounded, rare, and closed to the agent that wrote it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from muster_agent.cli.program import main
from muster_agent.config import read_config
from muster_agent.errors import ConfigInvalid
from muster_agent.metrics import outliers
from muster_agent.metrics.outliers import OutlierRing, OutlierUnreadable, entries, open_entry
from muster_shared.ids import ModelName

PRIVATE = X25519PrivateKey.generate()
MODEL = ModelName("digits")
IMAGE = np.arange(784, dtype=np.float32).reshape(1, 28, 28)


class Stopped:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Stopped:
    return Stopped()


@pytest.fixture
def ring(tmp_path: Path, clock: Stopped) -> Iterator[OutlierRing]:
    public = PRIVATE.public_key().public_bytes_raw()
    made = OutlierRing(tmp_path / "outliers", public, count=3, mib=1, clock=lambda: 1_795e6, monotonic=clock)
    yield made
    made.close()


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(entries(folder))]


def test_an_input_opens_with_the_recipients_key_as_it_came(ring: OutlierRing, tmp_path: Path) -> None:
    ring.keep(MODEL, "1.0.0", {"image": IMAGE, "mask": np.array([True, False])}, "outlier")
    ring.close()

    (raw,) = kept(tmp_path / "outliers")
    entry = open_entry(raw, PRIVATE)

    assert (entry.model, entry.version, entry.reason, entry.at) == (MODEL, "1.0.0", "outlier", 1_795e6)
    np.testing.assert_array_equal(entry.arrays()["image"], IMAGE)
    assert entry.arrays()["mask"].dtype == np.bool_


def test_nobody_else_can_open_it_and_nothing_of_it_is_in_the_clear(ring: OutlierRing, tmp_path: Path) -> None:
    ring.keep(MODEL, "1.0.0", {"image": IMAGE}, "outlier")
    ring.close()

    (raw,) = kept(tmp_path / "outliers")

    with pytest.raises(OutlierUnreadable):
        open_entry(raw, X25519PrivateKey.generate())
    assert b"digits" not in raw
    assert IMAGE.tobytes()[64:96] not in raw


def test_the_inputs_are_copied_when_they_are_kept(ring: OutlierRing, tmp_path: Path) -> None:
    changing = np.zeros(4, np.float32)

    ring.keep(MODEL, "1.0.0", {"x": changing}, "outlier")
    changing[:] = 9
    ring.close()

    (raw,) = kept(tmp_path / "outliers")
    assert open_entry(raw, PRIVATE).arrays()["x"].tolist() == [0, 0, 0, 0]


def test_within_a_second_only_one_is_kept(ring: OutlierRing, tmp_path: Path, clock: Stopped) -> None:
    for _ in range(50):
        ring.keep(MODEL, "1.0.0", {"x": np.zeros(4)}, "outlier")
        clock.at += 0.05
    ring.close()

    assert len(kept(tmp_path / "outliers")) == 3


def test_the_oldest_give_way_also_after_a_start(tmp_path: Path) -> None:
    public = PRIVATE.public_key().public_bytes_raw()
    for number in range(8):
        ring = OutlierRing(tmp_path / "outliers", public, count=3, mib=1)
        ring.keep(MODEL, f"1.0.{number}", {"x": np.zeros(4)}, "outlier")
        ring.close()

    versions = [open_entry(raw, PRIVATE).version for raw in kept(tmp_path / "outliers")]

    assert versions == ["1.0.5", "1.0.6", "1.0.7"]


def test_the_ring_is_bounded_in_bytes_as_well(tmp_path: Path, clock: Stopped) -> None:
    public = PRIVATE.public_key().public_bytes_raw()
    for _ in range(5):
        ring = OutlierRing(tmp_path / "outliers", public, count=100, mib=1)
        ring.keep(MODEL, "1.0.0", {"x": np.zeros(400_000, np.uint8)}, "outlier")
        ring.close()

    assert len(kept(tmp_path / "outliers")) == 2
    assert sum(map(len, kept(tmp_path / "outliers"))) < 1024 * 1024


@pytest.mark.parametrize(
    "array", [np.zeros(outliers.ENTRY_BYTES_MAX + 1, np.uint8), np.array([b"text"], object)], ids=["large", "text"]
)
def test_what_is_too_large_or_no_numbers_is_not_kept(
    ring: OutlierRing, tmp_path: Path, array: "np.ndarray[tuple[int], np.dtype[np.generic]]"
) -> None:
    ring.keep(MODEL, "1.0.0", {"x": array}, "outlier")
    ring.close()

    assert ring.missed == 1
    assert kept(tmp_path / "outliers") == []


def test_a_disk_that_refuses_costs_the_entry_alone(ring: OutlierRing, tmp_path: Path, clock: Stopped) -> None:
    (tmp_path / "outliers").write_text("in the way")

    ring.keep(MODEL, "1.0.0", {"x": np.zeros(4)}, "outlier")
    ring.close()

    assert (ring.kept, ring.missed) == (0, 1)


def test_after_it_was_closed_nothing_is_kept_and_nothing_breaks(ring: OutlierRing, clock: Stopped) -> None:
    ring.close()
    clock.at += 10

    ring.keep(MODEL, "1.0.0", {"x": np.zeros(4)}, "outlier")

    assert ring.kept == 0


# -- for the person on site --------------------------------------------------------------------------------------------


def configuration(folder: Path, metrics: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'fleet = "harbour"\ndevice = "crane-07"\ndevice_class = "x86-cpu"\ndata_dir = "{folder}"\n{metrics}\n'
    )
    return path


def test_from_keygen_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "ring.pem"
    assert main(["outliers", "keygen", "--key", str(key)]) == 0
    config = configuration(tmp_path, capsys.readouterr().out)
    wanted = read_config(config, {}).metrics.outliers
    assert wanted is not None
    ring = OutlierRing(tmp_path / "outliers", wanted.public_key, count=wanted.count, mib=wanted.mib)
    ring.keep(MODEL, "1.0.0", {"image": IMAGE}, "not_finite")
    ring.close()

    listed = main(["outliers", "list", "--config", str(config)])
    shown = capsys.readouterr().out
    opened = main(["outliers", "list", "--config", str(config), "--key", str(key), "--json"])
    rows = capsys.readouterr().out
    exported = main(["outliers", "export", "--config", str(config), "--key", str(key), "--to", str(tmp_path / "out")])

    assert (listed, opened, exported) == (0, 0, 0)
    assert "digits" not in shown
    assert '"reason": "not_finite"' in rows
    (found,) = (tmp_path / "out").iterdir()
    assert found.name == "00000001-digits-1.0.0-not_finite.npz"
    with np.load(found) as arrays:
        np.testing.assert_array_equal(arrays["input.image"], IMAGE)
    assert key.stat().st_mode & 0o777 == 0o600


def test_keygen_replaces_no_key(tmp_path: Path) -> None:
    key = tmp_path / "ring.pem"
    key.write_text("precious")

    assert main(["outliers", "keygen", "--key", str(key)]) == 2
    assert key.read_text() == "precious"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ('outliers = {recipient = "AAAA"}', "outliers.recipient"),
        ('outliers = {recipient = "not base64 at all"}', "outliers.recipient"),
        (f'outliers = {{recipient = "{"A" * 43}=", count = 0}}', "outliers.count"),
        ("clock_speed = 601", "clock_speed"),
        ("clock_speed = nan", "clock_speed"),
        ("clock_speed = 60", "clock_since"),
        ("spread_s = -1", "spread_s"),
        ('mixer = "nobody"', "metrics.mixer"),
        ("enable = true", "enable"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_field(tmp_path: Path, metrics: str, said: str) -> None:
    config = configuration(tmp_path, f"[metrics]\n{metrics}")

    with pytest.raises(ConfigInvalid, match=said):
        read_config(config, {})
