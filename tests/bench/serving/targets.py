"""What the serving stack is to reach, and whether this run did: pure, from `Results`.

Everything is a ratio or a difference within one run where it can be; absolutes are for the class of machine that the
targets were set on (2 cores, x86-64).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.serving.results import Results, Where

MUSTER, JSON, CLIENT = "muster", "muster json", "muster client"
SHARED, SHARED_SINGLE = "muster shared memory", "muster shared, single"
RAW = {"one": "raw", "two": "raw, 2 threads", "2x1": "raw, 2 callers", "b32": "raw, batch 32"}


@dataclass(frozen=True)
class Verdict:
    """`passed` None: something that it needs was not measured."""

    what: str
    wanted: str
    got: str
    passed: bool | None


def verdicts(results: Results) -> Iterator[Verdict]:
    """Judge every target."""
    yield _at_least("tiny, HTTP binary, c=32, requests/s", 15.0, *_rps_ratio(results, "tiny", "MLServer"))
    yield _at_least("tiny, HTTP binary, c=32, requests/s", 1.3, *_rps_ratio(results, "tiny", "bare uvicorn, batched"))
    p50 = results.ratio("p50_us", (MUSTER, "tiny", 1), ("bare httptools", "tiny", 1))
    yield _at_most("tiny, HTTP binary, c=1, p50", 1.3, "x bare httptools", p50)
    yield _at_least("tiny, Unix-socket client, c=32", 90_000, "inferences/s", _rps(results, CLIENT, "tiny", 32))
    yield _at_least("tiny, shared memory, c=32", 200_000, "inferences/s", _rps(results, SHARED, "tiny", 32))
    for model in ("magika", "conv"):
        best = _best_raw(results, model)
        share = None if best is None else results.ratio("rps", (MUSTER, model, 8), best)
        yield _at_least(f"{model}, c=8, requests/s", 0.97, "x the bare engine's best", share)
        yield _at_most(f"{model}, c=8, p99", 1.25, "x p50 with queueing", _spread(results, model, 8))
    yield _at_most("magika, c=32, p99 (fairness)", 1.4, "x p50", _spread(results, "magika", 32))
    yield from _swap(results)
    conv = results.get(MUSTER, "conv", 32)
    yield _at_most("conv, c=32, resident memory", 400, "MiB", None if conv is None else conv.rss_peak_mb)
    for model in dict.fromkeys(each.model for each in results.idle):
        cost = {each.server: each for each in results.idle if each.model == model}
        if MUSTER in cost and "raw" in cost:
            above = cost[MUSTER].rss_mb - cost["raw"].rss_mb
            yield _at_most(f"{model}, idle agent above the bare engine", 25, "MiB", above)
            yield _at_most(f"{model}, idle agent", 0.3, "% of a core", cost[MUSTER].cpu * 100)
    for model in dict.fromkeys(each.model for each in results.starts):
        agent, raw = results.start(MUSTER, model), results.start("raw", model)
        late = None if agent is None or raw is None else agent.seconds - raw.seconds
        yield _at_most(f"{model}, ready after the raw load", 0.5, "s", late)
    failed = sum(each.failed for each in results.figures if each.server.startswith(MUSTER))
    asked = any(each.server.startswith(MUSTER) for each in results.figures)
    yield _at_most("all loads, failed requests of ours", 0, "", failed if asked else None)


def _swap(results: Results) -> Iterator[Verdict]:
    swap = results.swap
    if swap is None:
        yield Verdict("hot swaps at full load", "no failed, no wrong answer, memory back", "not measured", None)
        return
    both = min(swap.seen) > 0
    what = f"{swap.swaps} hot swaps at full load"
    got = f"{swap.failed} failed, {swap.wrong} wrong of {swap.requests} ({swap.seen[0]} and {swap.seen[1]} by release)"
    yield Verdict(what, "0 failed, 0 of the wrong version", got, both and swap.failed == swap.wrong == 0)
    yield _at_most(f"{what}, resident memory", 1.1, "x before", swap.rss_after_mb / swap.rss_before_mb)


def _best_raw(results: Results, model: str) -> Where | None:
    """The engine can be driven one call on two cores, or two calls on one each: the faster of them is the bar."""
    found = [results.get(RAW[mode], model, callers) for mode, callers in (("one", 1), ("two", 1), ("2x1", 2))]
    best = max((each for each in found if each is not None), key=lambda each: each.rps, default=None)
    return None if best is None else (best.server, model, best.concurrency)


def _rps_ratio(results: Results, model: str, peer: str) -> tuple[str, float | None]:
    return f"x {peer}", results.ratio("rps", (MUSTER, model, 32), (peer, model, 32))


def _rps(results: Results, server: str, model: str, concurrency: int) -> float | None:
    found = results.get(server, model, concurrency)
    return None if found is None else found.rps


def _spread(results: Results, model: str, concurrency: int) -> float | None:
    """p99 by p50 in a closed loop: there the p50 is the queueing, as all but one of the callers wait at any time."""
    found = results.get(MUSTER, model, concurrency)
    return None if found is None else found.p99_us / found.p50_us


def _at_least(what: str, wanted: float, unit: str, got: float | None) -> Verdict:
    return _verdict(what, ">=", wanted, unit, got, lambda value: value >= wanted)


def _at_most(what: str, wanted: float, unit: str, got: float | None) -> Verdict:
    return _verdict(what, "<=", wanted, unit, got, lambda value: value <= wanted)


def _verdict(
    what: str, sign: str, wanted: float, unit: str, got: float | None, holds: Callable[[float], bool]
) -> Verdict:
    asked = f"{sign} {wanted:,g} {unit}".rstrip()
    if got is None:
        return Verdict(what, asked, "not measured", None)
    off = f" ({(got - wanted) / wanted:+.1%})" if wanted else ""
    return Verdict(what, asked, f"{got:,.0f}{off}" if wanted >= 1000 else f"{got:.3g}{off}", holds(got))
