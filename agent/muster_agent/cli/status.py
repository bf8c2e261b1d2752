"""`muster-agent status`: what the agent on this device does."""

import argparse
from datetime import UTC, datetime
from typing import Any

from muster_agent.cli.asking import ask, endpoint_of, token


def status(options: argparse.Namespace) -> None:
    answer = ask(endpoint_of(options), "GET", "/v1/status", token=token())
    if options.json:
        import json

        print(json.dumps(answer, indent=2))
        return
    for line in status_lines(answer):
        print(line)


def status_lines(answer: Any) -> list[str]:
    """Return the answer of `/v1/status` as lines of plain text, a table of the models last."""
    device = answer["device"]
    hardware = device["hardware"]
    lines = [
        f"device    {device['device']} ({hardware['device_class']}, {hardware['arch']}), agent {answer['agent']}",
        f"broker    {'connected' if answer['online'] else 'not connected; models go on serving'}",
        f"engines   {', '.join(hardware['runtimes']) or 'none installed'}",
        f"endpoint  {device['endpoint']}",
    ]
    lines += identity_lines(answer.get("identity"))
    if not device["models"]:
        return [*lines, "", "no models are assigned yet"]
    rows = [("MODEL", "SERVES", "STANDBY", "PHASE", "REQUESTS", "P95 MS", "ENGINE")]
    for model in device["models"]:
        progress, p95 = model["progress"], model["latency_ms_p95"]
        rows.append(
            (
                model["model"],
                _version(model["active"]),
                _version(model["standby"]),
                model["phase"] if progress is None else f"{model['phase']} {progress:.0%}",
                str(model["requests"]),
                "-" if p95 is None else f"{p95:.2f}",
                model["engine"] or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    errors = [f"{model['model']}: {model['last_error']}" for model in device["models"] if model["last_error"]]
    return [*lines, "", *table, *([""] if errors else []), *errors]


def identity_lines(identity: Any) -> list[str]:
    """Return what `/v1/status` says of the certificate, for people."""
    if identity is None:
        return []
    left_s = identity["expires_in_s"]
    until = datetime.fromtimestamp(identity["expires_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    since = datetime.fromtimestamp(identity["renewed_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    life = f"until {until}" if left_s > 0 else f"OVER since {until}"
    lines = [
        f"identity  {identity['key']} key, certificate {identity['fingerprint'][:16]}, {life}, granted {since}",
    ]
    if identity["problem"]:
        again = "" if identity["next_at"] is not None else " (not asked again: see docs, or run muster-agent renew)"
        lines.append(f"          not renewed: {identity['problem']}{again}")
    return lines


def _version(release: Any) -> str:
    return release["version"] if release else "-"
