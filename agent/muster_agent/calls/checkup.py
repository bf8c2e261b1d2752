"""Looking at what serves: its golden cases, and how fast it is beside its work. It loads and changes nothing.

Both run single rows through the session that serves, one at a time, each followed by a pause as long as it took: of
what the session can do, requests keep at least half.
"""

import time
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Final, Protocol

from muster_agent.engines.bench import single_rows
from muster_agent.engines.golden import judge, load_cases
from muster_agent.engines.port import EngineError, without_folder
from muster_agent.serving.table import Served
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import ANSWER_MODELS_MAX, ModelChecked

MODELS_S: Final = 60.0
"""For all models together, after which the rest is said not to have been looked at."""
BENCHMARK_S: Final = 2.0
BENCHMARK_CALLS: Final = 500
PAUSE_S_MAX: Final = 0.25
DETAIL_MAX: Final = 300


class Serving(Protocol):
    """What serves now, by model."""

    def __call__(self) -> Mapping[ModelName, Served]: ...


class Checkup:
    """Belongs to the thread of the calls."""

    def __init__(
        self,
        serving: Serving,
        folder_of: Callable[[Sha256], Path],
        root: Path,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            folder_of: Returns where the files of a loaded release are laid out.
            root: The folder of the device, which no answer names.
            clock: Seconds; only differences count.
        """
        self._serving = serving
        self._folder_of = folder_of
        self._root = root
        self._clock = clock
        self._sleep = sleep

    def self_test(self) -> tuple[ModelChecked, ...]:
        """Run the golden cases of every release that serves."""
        return self._each(self._test)

    def benchmark(self) -> tuple[ModelChecked, ...]:
        """Measure every release that serves, for about BENCHMARK_S each."""
        return self._each(self._measure)

    def _each(self, look: Callable[[Served], ModelChecked]) -> tuple[ModelChecked, ...]:
        found: list[ModelChecked] = []
        stop = self._clock() + MODELS_S
        for _, served in sorted(self._serving().items())[:ANSWER_MODELS_MAX]:
            if self._clock() >= stop:
                found.append(_checked(served, ok=False, detail="there was no time left for it; ask again"))
                continue
            started = self._clock()
            try:
                said = look(served)
            except (EngineError, OSError) as error:
                detail = without_folder(str(error), self._root)[:DETAIL_MAX]
                said = _checked(served, ok=False, detail=detail, seconds=self._clock() - started)
            found.append(said)
        return tuple(found)

    def _test(self, served: Served) -> ModelChecked:
        manifest, started = served.manifest, self._clock()
        cases = load_cases(self._golden(served), manifest)
        agreed, problem = 0, ""
        for case in range(cases.count):
            feed, begun = cases.feed(case, manifest.inputs), self._clock()
            verdict = judge(cases.expected(case, manifest.outputs), served.session.run(feed), manifest.golden)
            agreed += verdict.agrees
            problem = problem or verdict.problem
            self._rest(begun)
        if not problem and agreed < manifest.golden.argmax_agreement * cases.count:
            problem = f"{agreed} of {cases.count} cases point to the same class"
        return _checked(
            served,
            ok=not problem,
            detail=problem[:DETAIL_MAX] or f"{cases.count} golden cases answered as signed",
            seconds=self._clock() - started,
            calls=cases.count,
        )

    def _measure(self, served: Served) -> ModelChecked:
        started = self._clock()
        feeds = single_rows(load_cases(self._golden(served), served.manifest), served.manifest.inputs)
        took: list[float] = []
        for feed in cycle(feeds):
            begun = self._clock()
            served.session.run_arrays(feed)
            took.append(self._clock() - begun)
            if len(took) >= BENCHMARK_CALLS or self._clock() - started >= BENCHMARK_S:
                break
            self._rest(begun)
        took.sort()
        return _checked(
            served,
            ok=True,
            detail=f"{len(took)} calls beside what it serves",
            seconds=self._clock() - started,
            calls=len(took),
            rows_per_s=len(took) / max(sum(took), 1e-9),
            latency_ms_p50=took[len(took) // 2] * 1e3,
            latency_ms_p95=took[min(len(took) - 1, int(0.95 * len(took)))] * 1e3,
        )

    def _golden(self, served: Served) -> Path:
        return self._folder_of(served.manifest_sha256) / served.manifest.golden.file

    def _rest(self, begun: float) -> None:
        self._sleep(min(PAUSE_S_MAX, max(0.0, self._clock() - begun)))


def _checked(
    served: Served,
    *,
    ok: bool,
    detail: str,
    seconds: float = 0.0,
    calls: int = 0,
    rows_per_s: float | None = None,
    latency_ms_p50: float | None = None,
    latency_ms_p95: float | None = None,
) -> ModelChecked:
    achieved = served.session.achieved
    return ModelChecked(
        model=served.manifest.model,
        version=served.manifest.version,
        ok=ok,
        detail=detail,
        engine=f"{achieved.engine} {achieved.version} {achieved.device} {achieved.precision} x{achieved.threads}",
        seconds=round(seconds, 3),
        calls=calls,
        rows_per_s=rows_per_s,
        latency_ms_p50=latency_ms_p50,
        latency_ms_p95=latency_ms_p95,
    )
