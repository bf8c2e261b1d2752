"""Gates that read a history batch by batch and say when they would abort: ours as shipped, and the rules of peers.

A batch is looked at when its reports are in and, where devices are silent, again after its deadline. Waves wait for
both before the next one begins; so does the next batch here, unless a run is `impatient` (see `exposure`).
"""

from collections import Counter
from dataclasses import replace
from typing import Protocol

import numpy as np

from bench.rollout.histories import CLASSES, CONTROLS, Batch, Judged, Scenario
from harness.anchor_gates import ARGO_P, aws_aborts, hawkbit_aborts, mann_whitney_p, mann_whitney_p_of_counts
from muster_controller.core.gate.evidence import HOLD, Evidence, Terms, evidence
from muster_controller.core.gate.strata import Stratum


class Gate(Protocol):
    """One rollout's gate."""

    def reported(self, batch: Batch) -> bool:
        """Take a batch whose reports are in; return whether to abort."""
        ...

    def overdue(self, batch: Batch) -> bool:
        """Take it that the deadline of this batch has passed; return whether to abort."""
        ...


class Ours:
    """The shipped gate under default terms, stratified by wave and class."""

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.held = False
        self._strata: dict[tuple[int, str], Stratum] = {}
        self._bins: dict[tuple[int, str], Counter[int]] = {}

    def reported(self, batch: Batch) -> bool:
        for place, name in enumerate(CLASSES):
            key = batch.wave, name
            before = self._strata.get(key) or Stratum(batch.wave, name, 0, 0, 0, 0)
            bins = self._bins.setdefault(key, Counter())
            mine = batch.bins[batch.places == place].tolist()
            bins.update(mine)
            self._strata[key] = replace(
                before,
                treated=before.treated + int(batch.treated[place]),
                treated_bad=before.treated_bad + int(batch.failed[place]),
                controls=before.controls + CONTROLS * int(batch.treated[place]),
                controls_bad=before.controls_bad + int(batch.controls_bad[place]),
                latency=tuple(sorted(bins.items())),
                compared=before.compared + len(mine),
                disagreed=before.disagreed + int(batch.disagreed[place]),
            )
        return self._look()

    def overdue(self, batch: Batch) -> bool:
        if not batch.silent.any():
            return False
        for place, name in enumerate(CLASSES):
            before = self._strata[batch.wave, name]
            bad = before.treated_bad + int(batch.silent[place])
            self._strata[batch.wave, name] = replace(before, treated_bad=bad)
        return self._look()

    def found(self) -> Evidence:
        return evidence([stratum for stratum in self._strata.values() if stratum.treated], self.terms)

    def _look(self) -> bool:
        found = self.found()
        self.held = self.held or found.hold_e >= HOLD
        return found.e >= 1 / self.terms.alpha


class HawkBit:
    """More than 2 % of errors; a device that says nothing is no error."""

    def __init__(self) -> None:
        self._failed = self._total = 0

    def reported(self, batch: Batch) -> bool:
        self._failed += int(batch.failed.sum())
        self._total += int(batch.treated.sum())
        return hawkbit_aborts(self._failed, self._total)

    def overdue(self, batch: Batch) -> bool:
        return False


class AwsJobs:
    """More than 2 % failed or timed out, of at least 50 executed."""

    def __init__(self) -> None:
        self._failed = self._timed_out = self._executed = 0

    def reported(self, batch: Batch) -> bool:
        self._failed += int(batch.failed.sum())
        self._executed += int((batch.treated - batch.silent).sum())
        return aws_aborts(self._failed, self._timed_out, self._executed)

    def overdue(self, batch: Batch) -> bool:
        self._timed_out += int(batch.silent.sum())
        self._executed += int(batch.silent.sum())
        return aws_aborts(self._failed, self._timed_out, self._executed)


class MannWhitney:
    """p < .01 on one metric, all devices pooled, looked at every time; silent devices give no value."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged
        self._treated = self._treated_bad = self._controls = self._controls_bad = 0
        self._z_treated = np.empty(0)
        self._z_controls = np.empty(0)

    def reported(self, batch: Batch) -> bool:
        if self._judged is Judged.LATENCY:
            self._z_treated = np.concatenate((self._z_treated, batch.z_treated))
            self._z_controls = np.concatenate((self._z_controls, batch.z_controls.ravel()))
            return mann_whitney_p(self._z_treated, self._z_controls) < ARGO_P
        self._treated += int((batch.treated - batch.silent).sum())
        self._treated_bad += int(batch.failed.sum())
        self._controls += CONTROLS * int(batch.treated.sum())
        self._controls_bad += int(batch.controls_bad.sum())
        p = mann_whitney_p_of_counts(self._treated_bad, self._treated, self._controls_bad, self._controls)
        return p < ARGO_P

    def overdue(self, batch: Batch) -> bool:
        return False


OURS = "muster, alpha = .05"
PEERS = ("failures > 2 % (hawkBit)", "> 2 %, 50 at least (AWS)", "Mann-Whitney p < .01")


def gates(scenario: Scenario) -> dict[str, Gate]:
    """Return a new gate of each kind. Peers that watch failures alone are left out where latency is what changes."""
    mann_whitney = MannWhitney(scenario.judged)
    if scenario.judged is Judged.LATENCY:
        return {PEERS[2]: mann_whitney, OURS: Ours()}
    return {PEERS[0]: HawkBit(), PEERS[1]: AwsJobs(), PEERS[2]: mann_whitney, OURS: Ours()}
