"""The run as text: one table a model with ratios to the bare engine and to MLServer, then the targets."""

from collections.abc import Iterator

from bench.serving.results import Figures, Results
from bench.serving.targets import MUSTER, RAW, verdicts

RAW_NAMES = tuple(RAW.values())
PEER = "MLServer"
QUIET = 0.03


def render(results: Results) -> str:
    """Return the whole report."""
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    medians = results.medians()
    busy = f"; other programs took {results.others:.0%} of it" + (
        ": take ratios only" if results.others > QUIET else ""
    )
    yield f"{results.machine}{busy}"
    for model in dict.fromkeys(each.model for each in medians):
        yield from _table(results, model, [each for each in medians if each.model == model])
    if results.idle:
        yield "\nidle after loading            RSS MiB   USS MiB   CPU of a core"
        for each in results.idle:
            yield f"  {each.model:8} {each.server:18} {each.rss_mb:8.1f}  {each.uss_mb:8.1f}   {each.cpu:.2%}"
    if (swap := results.swap) is not None:
        yield (
            f"\n{swap.swaps} hot swaps under load: {swap.rps:,.0f} requests/s with every answer looked at, p99 "
            f"{swap.p99_us:,.0f} us; resident {swap.rss_before_mb:.0f} MiB before, {swap.rss_peak_mb:.0f} at most, "
            f"{swap.rss_after_mb:.0f} after"
        )
    for name, reason in results.missing.items():
        yield f"\n{name}: not measured: {reason}"
    yield "\ntargets"
    words = {True: "PASS", False: "MISS", None: "----"}
    for each in verdicts(results):
        yield f"  {words[each.passed]}  {each.what:46} {each.wanted:32} {each.got}"


def _table(results: Results, model: str, rows: list[Figures]) -> Iterator[str]:
    raw = max((row.rps for row in rows if row.server in RAW_NAMES and row.server != RAW["b32"]), default=None)
    yield f"\n{model}: x raw is to the best batch-1 rate of the bare engine, x {PEER} to that at the same concurrency"
    heads = (
        "c",
        "requests/s",
        "x raw",
        f"x {PEER}",
        "p50 us",
        "p99 us",
        "CPU s/1000",
        "RSS MiB",
        "peak",
        "start s",
        "failed",
    )
    widths = (3, 11, 7, 10, 9, 9, 10, 8, 7, 8, 7)
    yield f"  {'server':22}" + " ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    for row in rows:
        peer = results.get(PEER, model, row.concurrency)
        start = results.start(MUSTER if row.server.startswith(MUSTER) else row.server, model)
        cells = (
            str(row.concurrency),
            f"{row.rps:,.0f}" if row.rps >= 1000 else f"{row.rps:.1f}",
            _times(row.rps, raw),
            _times(row.rps, None if peer is None or row.server in RAW_NAMES else peer.rps),
            f"{row.p50_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.cpu_s_per_1000:.3f}",
            f"{row.rss_after_mb:.0f}" if row.rss_after_mb else "",
            f"{row.rss_peak_mb:.0f}" if row.rss_peak_mb else "",
            "" if start is None else f"{start.seconds:.2f}",
            f"{row.failed:.0f}",
        )
        yield f"  {row.server:22}" + " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _times(one: float, other: float | None) -> str:
    return "" if not other else f"{one / other:.2f}"
