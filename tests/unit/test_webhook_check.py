"""What docs/api.md shows for checking a webhook's signature accepts ours, and nothing else."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muster_controller.alerts.webhook import new_secret, signature

DOCUMENT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BODY = b'{"type": "alert.firing"}'
NOTICE = "1f2e3d4c5b6a"


def shown(language: str) -> str:
    """Return the block of code in `language` of the section on webhooks."""
    _, _, section = DOCUMENT.partition("## Webhooks")
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def is_ours() -> Callable[[str, dict[str, str], bytes], bool]:
    names: dict[str, Any] = {}
    exec(shown("python"), names)
    checked: Callable[[str, dict[str, str], bytes], bool] = names["is_ours"]
    return checked


def headers(secret: str, at: int) -> dict[str, str]:
    return {
        "webhook-id": NOTICE,
        "webhook-timestamp": str(at),
        "webhook-signature": signature(secret, NOTICE, at, BODY),
    }


def test_the_python_takes_what_we_sign_and_nothing_else() -> None:
    secret, now = new_secret(), int(time.time())
    check = is_ours()

    assert check(secret, headers(secret, now), BODY)
    assert not check(secret, headers(secret, now), BODY + b" ")
    assert not check(new_secret(), headers(secret, now), BODY)
    assert not check(secret, {**headers(secret, now), "webhook-id": "another"}, BODY)
    assert not check(secret, headers(secret, now - 3600), BODY), "it is an old one, sent again by somebody"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the shell's way needs openssl")
@pytest.mark.parametrize(("body", "expected"), [(BODY, "ours\n"), (BODY + b" ", "")])
def test_the_shell_takes_what_we_sign_and_nothing_else(tmp_path: Path, body: bytes, expected: str) -> None:
    secret, now = new_secret(), int(time.time())
    (tmp_path / "body.json").write_bytes(body)
    said = {"SECRET": secret, "ID": NOTICE, "TIMESTAMP": str(now), "SIGNATURE": signature(secret, NOTICE, now, BODY)}

    found = subprocess.run(
        ["sh", "-c", shown("sh")],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **said},
        capture_output=True,
        text=True,
        timeout=30.0,
        check=False,
    )

    assert found.stdout == expected, found.stderr
