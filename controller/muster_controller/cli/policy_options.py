"""The policy of a command line: a file, and the options that go before what it says. Checked before it is sent."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muster_controller.core import selector as selectors
from muster_controller.core.policy import Policy, PolicyInvalid
from muster_controller.policy_document import parse_policy, written
from muster_controller.policy_document.nodes import BYTES_MAX


def policy_of(
    file: Path | None, waves: Sequence[str] = (), labels: Sequence[str] = (), selector: str | None = None
) -> dict[str, Any]:
    """Return what differs from the default policy.

    Raises:
        PolicyInvalid: with the file's line, or the option.
        OSError: the file cannot be read.
    """
    found = {} if file is None else written(read(file))
    if waves:
        found.pop("ramp", None)
        found["waves"] = [int(each) if each.isdecimal() else each for each in waves]
    pairs = dict(label.partition("=")[::2] for label in labels)
    for label in labels:
        if "=" not in label:
            raise PolicyInvalid(f"a label is written key=value, not {label!r}", "selector")
    parts = [] if selector is None else [selector]
    if pairs:
        try:
            parts.append(selectors.equals(pairs))
        except selectors.SelectorInvalid as error:
            raise PolicyInvalid(f"--label: {error}", "selector") from error
    if parts:
        found["selector"] = ",".join(part for part in parts if part)
    parse_policy(json.dumps(found), "the options")
    return found


def read(file: Path) -> Policy:
    """Return the policy in `file`. Raises PolicyInvalid, OSError."""
    with file.open("rb") as opened:
        return parse_policy(opened.read(BYTES_MAX + 1), str(file))
