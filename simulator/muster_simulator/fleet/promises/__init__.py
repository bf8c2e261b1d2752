"""What must hold in every fleet world, whatever goes wrong. Each is a class; its docstring is the promise.

All promises of the simulator are listed at the end: those of the whole devices too, which `invariants` defines.
They watch the shipped code from outside, by what changed alone, and count for themselves: none asks the code under
test whether it is right. A broken one raises `InvariantBroken`, which ends the run.
"""

from collections.abc import Mapping

from muster_simulator.fleet.promises.assignments import (
    CountersRise,
    GoingBackIsFree,
    NeverFight,
    NothingAfterAbort,
    OneRolloutADevice,
    TouchedComeHome,
)
from muster_simulator.fleet.promises.ending import (
    Converges,
    NeverSpins,
    NothingEscapes,
    NothingLost,
    RolloutsEnd,
    SilenceCounts,
)
from muster_simulator.fleet.promises.evidence import AnyoneCanRecompute, CountsAreTrue
from muster_simulator.fleet.promises.holds import CutOff, HeldCountForNothing, HeldStay, NobodyAwaitsHeld
from muster_simulator.fleet.promises.scene import Promise, Scene
from muster_simulator.fleet.promises.telling import OnlyThoseOfTheWave, WindowsAreKept
from muster_simulator.fleet.promises.waves import HarmIsStopped, NoPromotionOnSilence, PaceIsKept, WavesInTurn
from muster_simulator.invariants import INVARIANTS, Invariant

__all__ = ["ALL", "PROMISES", "Converges", "NeverSpins", "NothingEscapes", "RolloutsEnd", "Scene"]

PROMISES: tuple[type[Promise], ...] = (
    CountersRise,
    OneRolloutADevice,
    NeverFight,
    NothingAfterAbort,
    TouchedComeHome,
    GoingBackIsFree,
    CountsAreTrue,
    AnyoneCanRecompute,
    NoPromotionOnSilence,
    WavesInTurn,
    PaceIsKept,
    HarmIsStopped,
    OnlyThoseOfTheWave,
    WindowsAreKept,
    NothingLost,
    RolloutsEnd,
    Converges,
    NeverSpins,
    NothingEscapes,
    SilenceCounts,
    HeldStay,
    HeldCountForNothing,
    NobodyAwaitsHeld,
    CutOff,
)
_LISTED: tuple[type[Invariant] | type[Promise], ...] = (*INVARIANTS, *PROMISES)
ALL: Mapping[str, str] = {each.name: " ".join((each.__doc__ or "").split()) for each in _LISTED}
"""Every promise of both worlds, by name."""
