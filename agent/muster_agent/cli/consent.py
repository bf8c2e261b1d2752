"""`muster-agent consent`: what this device would answer now if a rollout asked, rule by rule. A dry run.

The hook runs as whoever calls this. The rate of requests is asked of the agent, if one answers.
"""

import argparse
import json
import os
import time
from typing import Any

from muster_agent.cli.asking import ask, endpoint_of, token
from muster_agent.cli.exits import USAGE, CommandFailed

RATE_S = 1.0


def consent(options: argparse.Namespace) -> None:
    from muster_agent.config import read_config
    from muster_agent.consent.local_time import local_time
    from muster_agent.consent.rules import Rules
    from muster_agent.consent.sensors import PsutilSensors
    from muster_agent.core.state import Stage
    from muster_agent.errors import ConfigInvalid

    try:
        config = read_config(options.config, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error
    rules = Rules(config.consent, PsutilSensors(), lambda: _requests_per_s(options))
    decision = rules.decide(Stage(options.stage), options.model, options.version, every=True)
    local = local_time(config.timezone, time.time)
    weekday, minute = local.at(time.time())
    decisive = decision.decisive
    answer = {
        "stage": options.stage,
        "model": options.model,
        "version": options.version,
        "go_on": decisive is None,
        "reason": "" if decisive is None else decisive.later,
        "retry_s": None if decisive is None else decision.retry_s,
        "timezone": local.name,
        "local": {"weekday": weekday, "minute": minute},
        "checks": [
            {"rule": check.rule, "found": check.found, "later": bool(check.later), "fault": check.fault}
            for check in decision.checks
        ],
    }
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for line in consent_lines(answer):
        print(line)


def consent_lines(answer: Any) -> list[str]:
    """Return the answer as lines of plain text, the verdict first."""
    said = "go on" if answer["go_on"] else f"later, in {answer['retry_s']:g} s: {answer['reason']}"
    lines = [f"{answer['stage']} {answer['model']} {answer['version']}: {said}"]
    for check in answer["checks"]:
        mark = "fault" if check["fault"] else "later" if check["later"] else "ok"
        lines.append(f"  {mark:5}  {check['rule']:11}  {check['found']}")
    if not answer["checks"]:
        lines.append("  no rules for this stage; see [consent] in the configuration")
    local = answer["local"]
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[local["weekday"]]
    clock = f"{day} {local['minute'] // 60:02d}:{local['minute'] % 60:02d}"
    return [*lines, f"maintenance windows go by {answer['timezone'] or 'the clock of this host'}, where it is {clock}"]


def _requests_per_s(options: argparse.Namespace) -> float | None:
    """Return what the agent is asked now; None where none answers."""
    counts, moments = [], []
    for wait_s in (0.0, RATE_S):
        time.sleep(wait_s)
        try:
            status = ask(endpoint_of(options), "GET", "/v1/status", token=token())
        except CommandFailed:
            return None
        counts.append(sum(model["requests"] for model in status["device"]["models"]))
        moments.append(time.monotonic())
    return float(max(0, counts[1] - counts[0]) / (moments[1] - moments[0]))
