"""A review as Markdown: the same text for the terminal, a mail and a page. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from muster_controller.core.review.facts import Coming, Cost, Regression, Review, Room, Span, Suspect

_UNITS: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_MEASURES: Final = {
    "accuracy": "accuracy",
    "failures": "unanswered requests",
    "latency": "latency p95",
    "slow": "requests over the objective",
}


def headline(review: Review) -> str:
    """Return one line: what one has to know who reads no more."""
    hidden = sum(each.hidden for each in review.regressions)
    parts = [_count(len(review.regressions), "regression")]
    if hidden:
        parts[0] += f" ({hidden} hidden by the average)"
    if review.suspects:
        parts.append(f"{_count(len(review.suspects), 'cell')} in which odd inputs and errors rise together")
    tight = [each for each in review.rooms if each.factor is not None and each.factor < 1.25]
    if tight:
        parts.append(f"no room left on {', '.join(each.device_class for each in tight)}")
    return f"{review.week}: {'; '.join(parts)}."


def markdown(review: Review) -> str:
    """Return all of it."""
    lines = [
        f"# Week {review.week} of {review.fleet}",
        "",
        f"{day(review.begin)} to {day(review.end - 1)} (UTC), {_count(review.devices, 'device')}. {headline(review)}",
        *_section("What got worse", "Nothing, as far as can be told.", _worse(review.regressions)),
        *_section("Odd inputs and errors", "They do not rise together anywhere.", _odd(review.suspects)),
        *_section("Room at the busiest hour", "No device tells how busy it is.", _room(review.rooms)),
        *_section("What is coming", "Nothing.", _coming(review.coming)),
        *_section("What it cost", "Nothing was asked.", _costs(review.costs)),
    ]
    if review.left_out:
        lines += ["", f"{review.left_out} more findings are left out."]
    return "\n".join(lines) + "\n"


def _section(title: str, otherwise: str, body: Iterable[str]) -> list[str]:
    return ["", f"## {title}", "", *(list(body) or [otherwise])]


def _worse(found: Sequence[Regression]) -> Iterator[str]:
    for each in found:
        where = (
            each.model if each.dimension == "all" else f"{each.model}, {each.dimension.replace('_', ' ')} {each.name}"
        )
        versions = (
            "" if each.versions[0] == each.versions[1] else f"; {each.versions[0]} before, now {each.versions[1]}"
        )
        notes = [] if each.p is None else [_chance(each.p)]
        if each.hidden:
            notes.append("**the average does not show it**")
        said = f" ({', '.join(notes)})" if notes else ""
        measure = _MEASURES.get(each.measure, each.measure)
        yield f"- **{where}**: {measure} {_span(each, each.before)} → {_span(each, each.after)}{said}{versions}"


def _odd(found: Sequence[Suspect]) -> Iterator[str]:
    for each in found:
        where = ", ".join(part for part in (f"{each.model} {each.version}", each.device_class, each.region) if part)
        yield (
            f"- **{where}**: over {each.hours} hours, correlation {each.correlation:.2f} ({_chance(each.p)}); "
            f"{each.odd_share:.1%} of inputs odd, {each.error_share:.2%} of requests failed"
        )


def _room(found: Sequence[Room]) -> Iterator[str]:
    if not found:
        return
    yield "| device class | devices | busiest hour | processors | busiest device | requests/s at peak | room |"
    yield "|---|--:|---|--:|--:|--:|--:|"
    for each in found:
        cells = (
            each.device_class,
            str(each.devices),
            _known(each.busiest_at, hour),
            _known(each.cpu_percent, lambda value: f"{value:.0f} %"),
            _known(each.cpu_percent_max, lambda value: f"{value:.0f} %"),
            f"{each.requests_per_s_peak:.1f}",
            _known(each.factor, lambda value: f"{value:.1f}x"),
        )
        yield _row(cells)


def _coming(found: Sequence[Coming]) -> Iterator[str]:
    for each in found:
        when = "" if each.at is None else f" {day(each.at)}:"
        yield f"-{when} **{each.name}** {each.text}"


def _costs(found: Sequence[Cost]) -> Iterator[str]:
    if not found:
        return
    yield "| model | inferences | CPU-hours | energy | bytes | CPU-s / 1,000 | J / 1,000 | bytes / 1,000 |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for each in found:
        cells = (
            each.model,
            f"{each.inferences:,}",
            f"{each.cpu_hours:.2f}",
            _known(each.energy_kwh, lambda value: f"{value:.3g} kWh"),
            size(each.bytes_sent + each.bytes_received),
            _known(each.cpu_s_per_1000, lambda value: f"{value:.3g}"),
            _known(each.energy_j_per_1000, lambda value: f"{value:.3g}"),
            _known(each.bytes_per_1000, size),
        )
        yield _row(cells)


def size(count: float) -> str:
    """Return a number of bytes for people: "3.2 MB"."""
    unit, factor = next(((name, factor) for name, factor in _UNITS if count >= factor), ("B", 1.0))
    return f"{count / factor:.3g} {unit}"


def day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def hour(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%a %H:%M")


def _span(of: Regression, span: Span) -> str:
    def number(value: float) -> str:
        return f"{value:.3g} ms" if of.measure == "latency" else f"{value:.1%}"

    if span.low is None or span.high is None:
        return number(span.value)
    return f"{number(span.value)} [{number(span.low)}, {number(span.high)}]"


def _chance(p: float) -> str:
    """Tests are approximate far out in the tail: nobody should read more into them."""
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}"


def _known(value: float | None, say: Callable[[float], str]) -> str:
    return "unknown" if value is None else say(value)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(each.replace('|', '/') for each in cells)} |"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{f'{number:,}' if number else 'no'} {what}s"
