"""Windows and mixers for tests: devices that say something, and a mixer whose noise is nothing, or from a seed.

A mixer without noise is one with a budget that no option allows; all else is the shipped path.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.ledger import MixLedger
from muster_controller.mixer.mixer import Mixer
from muster_shared.ids import FleetId, ModelName
from muster_shared.metrics import DAY_S, HOUR_S, Cell, Kind, Mixed, Window, cohort, key_id, pack
from muster_shared.sealing import open_sealed, seal

FLEET = FleetId("test")
NOISELESS = 9e9
"""rho a day: sigma is a 16th of a unit, and noise other than 0 comes once in e^128 draws."""
CELL = Cell(model=ModelName("digits"), version="1.0.0", device_class="pi5", region="north", classes=10)
DAY_START = 20_000 * DAY_S
CONFIG = MixerConfig("one", FLEET, rho_day=NOISELESS, k_min=20)


def key_pair() -> tuple[str, X25519PrivateKey]:
    """Return a mixer's key and its name."""
    private = X25519PrivateKey.generate()
    return key_id(private.public_key().public_bytes_raw()), private


def window(
    rng: random.Random,
    *,
    start: int = DAY_START,
    length_s: int = HOUR_S,
    cell: Cell = CELL,
    units: Mapping[Kind, Mapping[int, int]] | None = None,
) -> Window:
    """Return a device's window; without `units` it gives its 64 to one class at random."""
    given = {Kind.CLASSES: {rng.randrange(cell.classes): 64}} if units is None else units
    return Window(
        cell=cell,
        period_start=start,
        period_s=3600 if length_s == HOUR_S else 86400,
        nonce=f"{rng.getrandbits(128):032x}",
        units={kind: pack(counts) for kind, counts in given.items()},
    )


class Stage:
    """A mixer over a ledger in `folder`, a clock that is set, and devices that seal to its key."""

    def __init__(self, folder: Path, config: MixerConfig = CONFIG, seed: int = 1) -> None:
        self.now = float(DAY_START)
        self.config = config
        self.folder = folder
        self.key, self.private = key_pair()
        self.public = self.private.public_key().public_bytes_raw()
        self.rng = random.Random(seed)
        self.open()

    def open(self) -> None:
        self.ledger = MixLedger(self.folder / "ledger.db")
        keys = {self.key: self.private}
        self.mixer = Mixer(
            self.config, self.ledger, lambda raw: open_sealed(raw, keys), self.rng.randrange, lambda: self.now
        )

    def restart(self, **changed: object) -> None:
        """Begin again from the file, perhaps with another configuration."""
        self.ledger.close()
        self.config = replace(self.config, **changed)  # type: ignore[arg-type]  # The caller's fields.
        self.open()

    def send(self, windows: Iterable[Window]) -> bool:
        return self.mixer.take([(cohort(one.cell), seal(one, self.public)) for one in windows])

    def at(self, now: float) -> list[Mixed]:
        """Let it be `now`, and return what is published then that was not before."""
        before = {one.batch for one in self.outbox()}
        self.now = now
        self.mixer.turn(settled=True)
        return [one for one in self.outbox() if one.batch not in before]

    def outbox(self) -> list[Mixed]:
        return [msgspec.json.decode(one.body, type=Mixed) for one in self.mixer.outbox(0, 1000)]

    def counted(self) -> Mapping[str, int]:
        return self.ledger.counters()
