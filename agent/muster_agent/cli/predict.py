"""`muster-agent predict`: files through the pipeline of a release, one after another."""

import argparse
import json
import mimetypes
import sys
from pathlib import Path
from typing import Any

from muster_agent.cli.asking import AgentRefused, ask_raw, endpoint_of, token
from muster_agent.cli.exits import FAILED, USAGE, CommandFailed

FILE_BYTES_MAX = 64 * 1024 * 1024
UNKNOWN = "application/octet-stream"
STDIN = "-"


def predict(options: argparse.Namespace) -> None:
    """Print what is in each file; a file that is refused does not keep the others from being asked."""
    endpoint = endpoint_of(options)
    refused = 0
    for name in options.files:
        kind = mimetypes.guess_type(name)[0] or UNKNOWN
        path = f"/v1/models/{options.model}/predict"
        try:
            answer = json.loads(ask_raw(endpoint, "POST", path, _read(name), content_type=kind, token=token()))
        except AgentRefused as error:
            if len(options.files) == 1:
                raise
            refused += 1
            print(f"muster-agent: {name}: {error}", file=sys.stderr)
            continue
        if options.json:
            print(json.dumps({"file": name, **answer}), flush=True)
        else:
            print(f"{name}  {described(answer['predictions'])}", flush=True)
    if refused:
        raise CommandFailed(FAILED, f"{refused} of {len(options.files)} files were refused")


def described(predictions: Any) -> str:
    """Return predictions as a line for people."""
    if not isinstance(predictions, dict):
        return json.dumps(predictions)
    return "  ".join(f"{name}={_value(value)}" for name, value in predictions.items())


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value)


def _read(name: str) -> bytes:
    try:
        raw = sys.stdin.buffer.read(FILE_BYTES_MAX + 1) if name == STDIN else _bounded(Path(name))
    except OSError as error:
        raise CommandFailed(USAGE, f"{name} cannot be read: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise CommandFailed(USAGE, f"{name} has more than {FILE_BYTES_MAX} bytes")
    return raw


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)
