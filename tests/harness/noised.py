"""Noised sums as a mixer would publish them, from what devices would have given: floats of a seed, not for privacy."""

from collections.abc import Sequence
from random import Random

import msgspec

from muster_controller.core.metrics.sums import MixedSum
from muster_shared.ids import ModelName
from muster_shared.metrics import HOUR_S, UNITS, Budget, Cell, Kind, Mixed, MixerState, sigma

MODEL = ModelName("digits")
BEGIN = 1_800_000_000 - 1_800_000_000 % 86_400


def cell(version: str = "1.0.0", device_class: str = "pi5-cpu", region: str = "north", classes: int = 10) -> Cell:
    return Cell(model=MODEL, version=version, device_class=device_class, region=region, classes=classes)


def noised(rng: Random, kind: Kind, votes: Sequence[float], scale: float = 1.0) -> tuple[int, ...]:
    """Return sums in units of `votes`, whole devices in each class, with the contract's noise."""
    return tuple(round(each * UNITS + rng.gauss(0, sigma(kind) * scale)) for each in votes)


def hour(
    rng: Random,
    kind: Kind,
    votes: Sequence[float],
    *,
    devices: int,
    number: int = 0,
    of: Cell | None = None,
    batch: str | None = None,
) -> MixedSum:
    """Return the sum of the hour `number` after BEGIN."""
    start = BEGIN + number * HOUR_S
    return MixedSum(
        batch=batch or f"b-{rng.getrandbits(40):x}",
        kind=kind,
        mixer="mixer-a",
        cell=of or cell(),
        period_start=float(start),
        period_s=HOUR_S,
        devices=devices,
        sums=noised(rng, kind, votes),
        variance=sigma(kind) ** 2,
    )


def mixed(batch: str = "b-1", number: int = 0, of: Cell | None = None, **changes: object) -> Mixed:
    """Return a message of a mixer about the hour `number` after BEGIN, of kinds INPUTS and CLASSES."""
    found = of or cell()
    said: dict[str, object] = {
        "batch": batch,
        "mixer": "mixer-a",
        "cell": found,
        "period_start": BEGIN + number * HOUR_S,
        "period_s": HOUR_S,
        "devices": 1000,
        "sums": {
            Kind.CLASSES: tuple(range(found.classes)),
            Kind.INPUTS: (60_000, -12, 5, 0, 0, 7, -3, 1),
        },
        "sigma": {Kind.CLASSES: sigma(Kind.CLASSES), Kind.INPUTS: sigma(Kind.INPUTS)},
        "mixed_at": BEGIN + (number + 2.0) * HOUR_S,
        **changes,
    }
    return Mixed(**said)  # type: ignore[arg-type]  # Tests change what they are about.


def mixer_state(**changes: object) -> MixerState:
    """Return what a mixer says of itself."""
    plain = MixerState(
        mixer="mixer-a",
        sent_at=1.0,
        key="0123456789abcdef",
        cohorts=(0, 1),
        delta=1e-6,
        eps_day=2.45,
        eps_30_days=15.9,
        k_min=20,
        budgets=(Budget(day=20_000, rho_spent=0.04, rho_budget=0.1),),
    )
    return msgspec.structs.replace(plain, **changes)
