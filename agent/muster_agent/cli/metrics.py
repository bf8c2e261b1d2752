"""`muster-agent metrics`: the anonymous windows that would leave this device next, opened, and what is not in them.

The agent is asked; where none runs, its journal is read, and then nobody knows the mixer's key.
"""

import argparse
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from muster_agent.cli.asking import NOT_FOUND, AgentAway, AgentRefused, ask, endpoint_of, token
from muster_agent.cli.exits import FAILED, USAGE, CommandFailed

PATH = "/v1/metrics"


def metrics(options: argparse.Namespace) -> None:
    try:
        answer = ask(endpoint_of(options), "GET", PATH, token=token())
    except AgentRefused as error:
        if error.status != NOT_FOUND:
            raise
        raise CommandFailed(FAILED, "this agent sends no anonymous metrics: metrics.enabled is false") from error
    except AgentAway:
        if options.endpoint:
            raise
        answer = _journal(options.config)
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for line in metrics_lines(answer):
        print(line)


def metrics_lines(answer: Any) -> list[str]:
    """Return the answer of `/v1/metrics` as lines of plain text."""
    lines = [answer["anonymous"], ""]
    if not answer["running"]:
        lines.append("agent     none answers; this is what the journal of the last one says")
    waiting, totals = answer["waiting"], answer["totals"]
    leaving = f"not now: {answer['waits_for']}" if answer["waits_for"] else "each window at a moment of its own"
    lines += [
        f"mixer     {answer['mixer'] or 'none'}",
        f"leaving   {leaving}",
        f"clock     {_moment(answer['at']) if answer['at'] is not None else 'not known'}",
        f"waiting   {waiting['windows']} windows of {waiting['hours']} hours and {waiting['days']} days, "
        f"{waiting['merging']} parts of days that are not over"
        + (f", since {_moment(waiting['oldest'])}" if waiting["oldest"] is not None else ""),
        f"sent      {totals['sent_hours']} windows of hours, {totals['sent_days']} of days; {totals['merged']} hours "
        "came too late and were merged into days",
        f"dropped   {totals['dropped_days']} days, {totals['dropped_inferences']} inferences; {totals['unconfirmed']} "
        f"windows of which nobody knows whether they arrived; {totals['unsealable']} that could not be sealed",
    ]
    if not answer["next"]:
        return [*lines, "", "nothing would be sent: no release that serves allows anything (its metrics.allow)"]
    for window in answer["next"]:
        lines += ["", *_window(window)]
    return lines


def _window(window: Any) -> list[str]:
    length = "hour" if window["period_s"] == 3600 else "day"
    where = f"{window['device_class']}, {'region ' + window['region'] if window['region'] else 'no region'}"
    size = f"{window['bytes']} bytes" if window["bytes"] is not None else "no mixer to seal it to"
    latest = "" if window["latest"] is None else f", at the latest {_moment(window['latest'])}"
    lines = [
        f"{window['model']} {window['version']} ({where}): the {length} from {_moment(window['period_start'])}, "
        f"{window['state']}",
        f"  to         {window['topic']}, {size}",
        f"  earliest   {_moment(window['earliest'])}{latest}",
        f"  made from  {window['inferences']} inferences, which are not told",
    ]
    for kind, units in window["kinds"].items():
        lines.append(f"  {kind:<10} " + ", ".join(f"{name}: {count}" for name, count in units.items()))
    for kind, why in window["left_out"].items():
        lines.append(f"  not in it  {kind}: {why}")
    return lines


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"


def _journal(config_path: Path) -> Any:
    import msgspec

    from muster_agent.config import read_config, with_grant
    from muster_agent.errors import ConfigInvalid, JournalFailed
    from muster_agent.metrics.journal import FILE, read
    from muster_agent.metrics.showing import from_journal

    try:
        config = read_config(config_path, os.environ)
        with suppress(ConfigInvalid):  # A device that is not enrolled has a journal as well.
            config = with_grant(config, config_path)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error
    path = config.data_dir / FILE
    if not path.exists():
        raise AgentAway(f"no agent answers, and none has counted anything in {config.data_dir} yet; start it first")
    try:
        return msgspec.to_builtins(
            from_journal(read(path, config.metrics_place), config.fleet, config.metrics.spread_s)
        )
    except JournalFailed as error:
        raise CommandFailed(FAILED, str(error)) from error
