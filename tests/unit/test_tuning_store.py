"""What is remembered of a measured choice, and what is not believed."""

from random import Random

import msgspec
import pytest

from muster_agent.core.plan import ServingPlan
from muster_agent.io.tuning_store import ENTRIES_MAX, FILE_BYTES_MAX, HardwareClass, Remembered, TuningStore
from muster_shared.bundle import Variant, digest
from muster_shared.messages import Tuning
from muster_simulator.ports.disk import MemoryDisk

BUNDLE = digest(b"bundle")
HERE = HardwareClass(processor="p", arch="x86_64", cpus=2, threads_max=2, engines={"onnxruntime": "1.31.1"})
VARIANTS = (Variant(name="a", runtime="onnxruntime", precision="fp32", files=("m",)),)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


def found(*, hardware: HardwareClass = HERE, variant: str = "a", **plan: object) -> Remembered:
    tuning = Tuning(
        variant=variant,
        engine="onnxruntime 1.31.1",
        device="CPU",
        precision="fp32",
        threads=1,
        instances=2,
        batch_max=4,
        rows_per_s=200.0,
        latency_ms_p95=10.0,
    )
    chosen = ServingPlan(inline=False, batch_max=4, instances_max=2, curve=((1, 9.0), (2, 12.5)))
    return Remembered(hardware=hardware, variant=variant, plan=msgspec.structs.replace(chosen, **plan), tuning=tuning)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_measured_here_is_recalled_after_power_loss(disk: MemoryDisk, seed: int) -> None:
    TuningStore(disk).remember(BUNDLE, found())
    disk.lose_power(Random(seed))

    assert TuningStore(disk).recall(BUNDLE, HERE, VARIANTS) == found()


@pytest.mark.parametrize(
    "elsewhere",
    [{"processor": "q"}, {"arch": "aarch64"}, {"cpus": 4}, {"threads_max": 1}, {"engines": {"onnxruntime": "1.32.0"}}],
)
def test_on_other_hardware_or_engines_it_is_measured_anew(disk: MemoryDisk, elsewhere: dict[str, object]) -> None:
    store = TuningStore(disk)
    store.remember(BUNDLE, found())

    assert store.recall(BUNDLE, msgspec.structs.replace(HERE, **elsewhere), VARIANTS) is None


def test_each_class_of_hardware_is_remembered_up_to_a_bound(disk: MemoryDisk) -> None:
    store = TuningStore(disk)
    classes = [msgspec.structs.replace(HERE, processor=f"p{number}") for number in range(ENTRIES_MAX + 2)]
    for hardware in classes:
        store.remember(BUNDLE, found(hardware=hardware))

    recalled = [store.recall(BUNDLE, hardware, VARIANTS) is not None for hardware in classes]

    assert recalled == [False, False, *[True] * ENTRIES_MAX]


def test_a_newer_measurement_replaces_the_older(disk: MemoryDisk) -> None:
    store = TuningStore(disk)
    store.remember(BUNDLE, found())
    store.remember(BUNDLE, found(batch_max=2))

    recalled = store.recall(BUNDLE, HERE, VARIANTS)

    assert recalled is not None
    assert recalled.plan.batch_max == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"v": 1, "entries": [{"variant": "a"}]}',
        b'{"v": 2, "entries": []}',
        b"[" * 100_000,
        b"\xff\xfe",
        b" " * (FILE_BYTES_MAX + 1),
    ],
)
def test_a_damaged_file_is_as_good_as_none_and_is_written_again(disk: MemoryDisk, raw: bytes) -> None:
    store = TuningStore(disk)
    disk.write_at(f"tuning/{BUNDLE}.json", 0, raw)

    assert store.recall(BUNDLE, HERE, VARIANTS) is None
    store.remember(BUNDLE, found())
    assert store.recall(BUNDLE, HERE, VARIANTS) == found()


@pytest.mark.parametrize(
    "strange",
    [
        {"variant": "b"},
        {"threads": 3},
        {"threads": 0},
        {"instances_max": 3},
        {"instances_min": 0},
        {"instances_min": 2, "instances_max": 1},
        {"batch_max": 0},
        {"batch_max": 10**9},
        {"delay_us": -1},
        {"delay_us": 10**9},
    ],
)
def test_what_cannot_have_been_measured_here_is_not_believed(disk: MemoryDisk, strange: dict[str, object]) -> None:
    store = TuningStore(disk)
    store.remember(BUNDLE, found(**strange))  # type: ignore[arg-type]

    assert store.recall(BUNDLE, HERE, VARIANTS) is None


def test_releases_that_are_not_kept_are_forgotten(disk: MemoryDisk) -> None:
    store = TuningStore(disk)
    other = digest(b"other")
    store.remember(BUNDLE, found())
    store.remember(other, found())

    store.collect(frozenset({other}))

    assert store.recall(BUNDLE, HERE, VARIANTS) is None
    assert store.recall(other, HERE, VARIANTS) is not None


def test_a_disk_that_takes_nothing_is_no_reason_to_fail(disk: MemoryDisk) -> None:
    disk.read_only = True
    store = TuningStore(disk)

    store.remember(BUNDLE, found())

    assert store.recall(BUNDLE, HERE, VARIANTS) is None
