"""Asks the device's rules for the conductor, on a thread of its own, one question at a time.

    conductor ── ask ──▶ queue (ASKED_MAX) ──▶ thread: `rules` ──▶ post ──▶ Conductor.consent_given | consent_deferred

A question that is asked again before its answer is answered once. A fault of the hook is logged when it begins and when
it is over, and counted.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from muster_agent.consent.local_time import LocalTime
from muster_agent.consent.rules import Check, Rules
from muster_agent.core.state import Stage
from muster_shared.ids import Sha256
from muster_shared.messages import ReleaseRef

ASKED_MAX = 64  # As many as an assignment has models.

log = structlog.get_logger()


class Answers(Protocol):
    """What the conductor wants to hear, on its own thread."""

    def consent_given(self, bundle: Sha256, stage: Stage) -> None: ...

    def consent_deferred(self, bundle: Sha256, stage: Stage, reason: str, retry_after_s: float) -> None: ...


class DeviceConsent:
    """`ports.Consent`. Call `attach` before the conductor starts."""

    def __init__(
        self,
        rules: Rules,
        local: LocalTime,
        clock: Callable[[], float],
        post: Callable[[Callable[[], None]], None],
        retry_s: float,
    ) -> None:
        """
        Args:
            post: Runs a call on the conductor's thread, from any thread.
            retry_s: When to ask again what could not be asked.
        """
        self.faults = 0
        """Of the hook, since the start."""
        self._rules = rules
        self._local = local
        self._clock = clock
        self._post = post
        self._retry_s = retry_s
        self._answers: Answers | None = None
        self._asked: set[tuple[Sha256, Stage]] = set()
        self._queue: queue.SimpleQueue[tuple[ReleaseRef, Stage]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._faulty = ""

    def attach(self, answers: Answers) -> None:
        self._answers = answers

    # -- ports.Consent, on the conductor's thread ---------------------------------------------------------------------

    def local(self) -> tuple[int, int]:
        return self._local.at(self._clock())

    def ask(self, release: ReleaseRef, stage: Stage) -> None:
        question = (release.bundle_sha256, stage)
        if question in self._asked:
            return
        if len(self._asked) >= ASKED_MAX:
            self._answer().consent_deferred(*question, "too many questions at once", self._retry_s)
            return
        self._asked.add(question)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="consent", daemon=True)
            self._thread.start()
        self._queue.put((release, stage))

    def _settle(self, bundle: Sha256, stage: Stage, decisive: Check | None, retry_s: float) -> None:
        self._asked.discard((bundle, stage))
        if decisive is None:
            self._answer().consent_given(bundle, stage)
        else:
            self._answer().consent_deferred(bundle, stage, decisive.later, retry_s)

    def _answer(self) -> Answers:
        assert self._answers is not None, "attach comes first"
        return self._answers

    # -- on its own thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            release, stage = self._queue.get()
            decisive, retry_s = self._decide(release, stage)
            self._tell(decisive)
            self._post(partial(self._settle, release.bundle_sha256, stage, decisive, retry_s))

    def _decide(self, release: ReleaseRef, stage: Stage) -> tuple[Check | None, float]:
        try:
            decision = self._rules.decide(stage, release.model, release.version)
        except Exception:  # A bug of ours must not let a release through, nor leave it waiting for ever.
            log.exception("consent_not_asked")
            return Check("rules", "", "the device's rules could not be asked", fault=True), self._retry_s
        return decision.decisive, decision.retry_s

    def _tell(self, decisive: Check | None) -> None:
        fault = decisive.later if decisive is not None and decisive.fault else ""
        if fault:
            self.faults += 1
            if fault != self._faulty:
                log.error("consent_hook_failed", reason=fault)
        elif self._faulty:
            log.info("consent_hook_back")
        self._faulty = fault
