"""Which models stay in memory: within a budget, the least recently used go first, and come back when asked for.

             Loaded                    Unloaded, or room is needed
    LOADING ────────▶ LOADED ──────────────────────────▶ UNLOADED
       ▲  └──── LoadFailed ─────────────────────────────▶ │
       └─────────────────────── Asked ────────────────────┘         any state ── Gone ──▶ forgotten

Pure: `lab` loads and unloads what this decides. A model that is larger than the budget is served all the same, alone
beside the pinned ones: a device that refuses its only model is of no use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import assert_never

from muster_shared.ids import ModelName


class Presence(Enum):
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADED = "unloaded"


@dataclass(frozen=True)
class Resident:
    """One model that this device has a release of."""

    presence: Presence
    length: int
    """Bytes of memory, as last measured."""
    used_at: float
    """Seconds of a clock that only rises."""


@dataclass(frozen=True)
class Residency:
    """What is known of all of them."""

    budget: int | None = None
    """Bytes for all loaded models together; None: no limit."""
    pinned: frozenset[ModelName] = frozenset()
    """Never unloaded for another one's sake."""
    models: Mapping[ModelName, Resident] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def held(self) -> int:
        """Bytes of what is loaded or about to be."""
        return sum(model.length for model in self.models.values() if model.presence is not Presence.UNLOADED)

    def presence(self, name: ModelName) -> Presence | None:
        """Return the state of one model; None when it is not known."""
        model = self.models.get(name)
        return None if model is None else model.presence


@dataclass(frozen=True)
class Loaded:
    """A release of `model` serves from now on."""

    model: ModelName
    length: int


@dataclass(frozen=True)
class LoadFailed:
    model: ModelName


@dataclass(frozen=True)
class Used:
    """It was last asked at `at`. Tell it before whatever may need room; it decides nothing by itself."""

    model: ModelName
    at: float


@dataclass(frozen=True)
class Asked:
    """Somebody wants `model`, which may be unloaded."""

    model: ModelName


@dataclass(frozen=True)
class Unloaded:
    """Somebody wants `model` out of memory, pinned or not."""

    model: ModelName


@dataclass(frozen=True)
class Gone:
    """The device has no release of `model` any more."""

    model: ModelName


Event = Loaded | LoadFailed | Used | Asked | Unloaded | Gone


@dataclass(frozen=True)
class Load:
    model: ModelName


@dataclass(frozen=True)
class Unload:
    model: ModelName


Effect = Load | Unload


def advance(residency: Residency, event: Event, now: float) -> tuple[Residency, tuple[Effect, ...]]:
    """Return what follows from `event`. An event about a model that is not known changes nothing, but `Loaded`.

    Args:
        now: Seconds, of the clock of `Used.at`.
    """
    model = residency.models.get(event.model)
    match event:
        case Loaded(name, length):
            residency = _with(residency, name, Resident(Presence.LOADED, max(0, length), now))
            return _make_room(residency, name)
        case Gone(name):
            models = {other: each for other, each in residency.models.items() if other != name}
            return replace(residency, models=MappingProxyType(models)), ()
        case _ if model is None:
            return residency, ()
        case LoadFailed(name):
            return _with(residency, name, replace(model, presence=Presence.UNLOADED)), ()
        case Used(name, at):
            return _with(residency, name, replace(model, used_at=max(model.used_at, at))), ()
        case Asked(name):
            if model.presence is not Presence.UNLOADED:
                return residency, ()
            residency = _with(residency, name, replace(model, presence=Presence.LOADING, used_at=now))
            residency, effects = _make_room(residency, name)
            return residency, (*effects, Load(name))
        case Unloaded(name):
            if model.presence is Presence.UNLOADED:
                return residency, ()
            return _with(residency, name, replace(model, presence=Presence.UNLOADED)), (Unload(name),)
        case _:
            assert_never(event)


def _make_room(residency: Residency, sparing: ModelName) -> tuple[Residency, tuple[Effect, ...]]:
    """Unload the least recently used until the rest fits; never `sparing`, a pinned one, or one that is loading."""
    effects: list[Effect] = []
    while residency.budget is not None and residency.held > residency.budget:
        candidates = [
            (model.used_at, name)
            for name, model in residency.models.items()
            if model.presence is Presence.LOADED and name != sparing and name not in residency.pinned
        ]
        if not candidates:
            break
        _, oldest = min(candidates)
        residency = _with(residency, oldest, replace(residency.models[oldest], presence=Presence.UNLOADED))
        effects.append(Unload(oldest))
    return residency, tuple(effects)


def _with(residency: Residency, name: ModelName, model: Resident) -> Residency:
    return replace(residency, models=MappingProxyType({**residency.models, name: model}))
