"""A fleet that was watched for a while: series, noised sums, a mixer, an alert, an objective as rows, without devices.

Numbers are the simplest that tell one thing from another: what is read back is compared with what is written here.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import insert

from muster_controller.core.metrics.series import HOST, Group
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import AlertRow, MixedRow, MixerRow, ObjectiveRow, Row, SeriesRow, table
from muster_shared.ids import ModelName
from muster_shared.metrics import DELTA, HOUR_S, RHO_DAY, UNITS, Budget, Cell, Kind, MixerState, eps, sigma

MODEL = ModelName("digits")
SERIES = {
    "devices": 30,
    "requests": 6000,
    "errors": 12,
    "slow": 60,
    "inferences": 9000,
    "cpu_ms": 45_000.0,
    "energy_j": None,
    "bytes_sent": 1e6,
    "bytes_received": 2e6,
    "latency_ms_p95_max": 31.0,
    "cpu_percent_max": 88.0,
    "cpu_percent_sum": 300.0,
    "cpu_told": 10,
}


@dataclass
class Observed:
    """Writes into the tables of `side`; time is given."""

    side: SideDatabase
    seed: int = 5
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def add(self, row: type[Row], values: Sequence[Mapping[str, Any]]) -> None:
        with self.side.transaction() as connection:
            connection.execute(insert(table(row)), [dict(each) for each in values])

    def series(self, at: float, period_s: int = 300, group: Group | None = None, **changes: Any) -> None:
        """One point of a series; without a group, of MODEL 1.0.0 on a class, and of whole devices of that class."""
        groups = (
            [group] if group is not None else [Group(MODEL, "1.0.0", "pi5-cpu", "north"), Group(HOST, HOST, "pi5-cpu")]
        )
        rows = [
            {
                "model": each.model,
                "version": each.version,
                "device_class": each.device_class,
                "region": each.region,
                "at": float(at),
                "period_s": period_s,
                **SERIES,
                **changes,
            }
            for each in groups
        ]
        self.add(SeriesRow, rows)

    def mixed(self, cell: Cell, kind: Kind, shares: Sequence[float], start: float, **how: Any) -> None:
        """Noised sums of one kind: `shares` of what `devices` devices gave, all of them to this cell."""
        devices = how.pop("devices", 10_000)
        spread = how.pop("sigma", sigma(kind))
        sums = [round(share * devices * UNITS + self._random.gauss(0.0, spread)) for share in shares]
        row = {
            "batch": f"b-{cell.version}-{cell.device_class}-{cell.region}-{kind.value}-{start:.0f}",
            "kind": kind.value,
            "mixer": "mixer-1",
            **msgspec.to_builtins(cell),
            "period_start": float(start),
            "period_s": HOUR_S,
            "devices": devices,
            "late": False,
            "sums": msgspec.json.encode(sums),
            "variance": spread**2,
            "periods": 1,
            **how,
        }
        self.add(MixedRow, [row])

    def mixer(self, now: float, spent: float = 0.04) -> None:
        day = int(now // 86_400)
        state = MixerState(
            mixer="mixer-1",
            sent_at=now - 30,
            key="0" * 16,
            cohorts=tuple(range(16)),
            delta=DELTA,
            eps_day=eps(RHO_DAY),
            eps_30_days=eps(30 * RHO_DAY),
            k_min=20,
            budgets=(
                Budget(day=day, rho_spent=spent, rho_budget=RHO_DAY),
                Budget(day=day - 1, rho_spent=RHO_DAY, rho_budget=RHO_DAY),
            ),
            windows=120,
            refused=3,
        )
        raw = msgspec.json.encode(state)
        said = {"id": "mixer-1", "created_at": now, "created_by": "admin", "public_key": "", "seen_at": now - 30}
        self.add(MixerRow, [{**said, "state": raw}])

    def alert(self, now: float, rule: str = "drift", state: str = "firing") -> None:
        self.add(
            AlertRow,
            [
                {
                    "id": f"a-{rule}-{state}",
                    "rule": rule,
                    "subject": MODEL,
                    "severity": "ticket",
                    "state": state,
                    "summary": "digits drifts",
                    "facts": b"{}",
                    "began_at": now,
                    "changed_at": now,
                    "seen_at": now,
                    "resolved_at": None,
                    "acknowledged_by": "",
                    "acknowledged_at": None,
                    "comment": "",
                    "times": 1,
                }
            ],
        )

    def objective(self, now: float, indicator: str = "availability", target: float = 0.999) -> None:
        goal = {"name": f"digits-{indicator}", "model": MODEL, "selector_class": "", "indicator": indicator}
        self.add(ObjectiveRow, [{**goal, "target": target, "created_at": now, "created_by": "admin"}])


def cell(version: str = "1.0.0", device_class: str = "pi5-cpu", region: str = "north", classes: int = 3) -> Cell:
    return Cell(model=MODEL, version=version, device_class=device_class, region=region, classes=classes)
