"""`muster-agent trial`: begin, read and end the trial of a candidate beside the release that serves."""

import argparse
import json
from typing import Any

from muster_agent.cli.asking import NOT_FOUND, AgentRefused, ask, endpoint_of, token


def trial(options: argparse.Namespace) -> None:
    endpoint = endpoint_of(options)
    path = f"/v1/models/{options.model}/trial"
    if options.end:
        ask(endpoint, "DELETE", path, token=token())
        print(json.dumps({"model": options.model, "trial": None}) if options.json else f"{options.model}: ended")
        return
    share = options.shadow if options.shadow is not None else options.canary
    if share is not None:
        mode = "canary" if options.shadow is None else "shadow"
        ask(endpoint, "POST", path, json.dumps({"mode": mode, "share": share}).encode(), token=token())
    answer = _reading(endpoint, path)
    if options.json:
        print(json.dumps({"model": options.model, "trial": answer}, indent=2))
        return
    for line in trial_lines(options.model, answer):
        print(line)


def trial_lines(model: str, reading: Any) -> list[str]:
    """Return the answer of `/v1/models/{model}/trial` as lines of plain text; None: there is no trial."""
    if reading is None:
        return [f"{model}: nothing is tried; begin with --shadow or --canary"]
    lines = [f"{model}: {reading['candidate']} as {reading['mode']} of {reading['share']:.3g} of the requests"]
    if reading["mode"] == "shadow":
        compared, disagreed = reading["compared"], reading["disagreed"]
        share = f"{1 - disagreed / compared:.2%} agree" if compared else "nothing compared yet"
        lines.append(
            f"  rows      {compared} compared, {disagreed} disagree: {share}; worst {reading['worst_abs']:.3g}"
        )
        lines.append(f"  skipped   {reading['skipped']}, for want of capacity")
    lines.append(f"  errors    {reading['errors']} of the candidate")
    for who, key in (("serving", "primary"), ("candidate", "candidate_latency")):
        p50, p95 = quantile_ms(reading[key], 0.5), quantile_ms(reading[key], 0.95)
        told = "no requests yet" if p50 is None or p95 is None else f"p50 {p50:.3g} ms, p95 {p95:.3g} ms in the engine"
        lines.append(f"  {who:9} {told}")
    return lines


def quantile_ms(stage: Any, share: float) -> float | None:
    """Return the latency that `share` (0..1) of a reading's requests stay within; None when there were none.

    Buckets are (floor(16 log2 us), count), as `core.latency` has them.
    """
    seen = 0
    for index, count in stage["buckets"]:
        seen += count
        if seen >= share * stage["count"]:
            return float(2 ** ((index + 0.5) / 16)) / 1e3
    return None


def _reading(endpoint: str, path: str) -> Any:
    try:
        return ask(endpoint, "GET", path, token=token())
    except AgentRefused as error:
        if error.status == NOT_FOUND:
            return None
        raise
