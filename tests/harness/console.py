"""What browser tests stand on: a demo that goes on, a Chromium, and axe.

`MUSTER_DEMO_DIR` names the folder of a demo that runs already; without it one is started, which takes two minutes.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from playwright.sync_api import Page

from muster_controller.operators.local import read_local
from muster_shared.bundle import digest, encode_manifest, parse_manifest
from muster_simulator.demo.stage import MUSTER

ROOT = Path(__file__).parents[2]
AXE = ROOT / "controller/assets/node_modules/axe-core/axe.min.js"
READY_S = 400.0
STOP_S = 60.0
DEVICES = 20
ASK_S = 30.0
COMMAND_S = 120.0  # Python itself takes seconds to begin on a busy machine.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_URL = re.compile(r"The fleet goes on at (\S+) ")


@dataclass(frozen=True)
class Demo:
    """A fleet that a demo left running."""

    folder: Path
    url: str

    @property
    def token(self) -> str:
        """The controller's local token: an admin's."""
        found = read_local(self.folder / "controller")
        assert found is not None, f"no controller runs in {self.folder}"
        return found

    @property
    def operator(self) -> Path:
        """The offline keys' folder."""
        return self.folder / "operator"

    @property
    def port(self) -> int:
        found = urlsplit(self.url).port
        assert found is not None
        return found

    def ask(self, path: str, body: object = None, *, method: str = "") -> Any:
        """Return what the API answers to a GET, or to a POST of `body`. For what a test prepares or looks up."""
        with httpx.Client(base_url=f"{self.url}/api/v1", timeout=ASK_S, trust_env=False) as http:
            headers = {"Authorization": f"Bearer {self.token}"}
            answer = http.request(method or ("GET" if body is None else "POST"), path, json=body, headers=headers)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def muster(self, *words: str) -> subprocess.Popen[str]:
        """Start the command line, logged in by the local token, and return it: its standard output is a pipe."""
        environment = {**os.environ, "MUSTER_DATA": str(self.folder / "controller"), "NO_COLOR": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", MUSTER, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_muster(self, *words: str) -> str:
        """Run a command that must succeed; return what it printed."""
        process = self.muster(*words)
        try:
            out, problems = process.communicate(timeout=COMMAND_S)
        finally:
            process.kill()
        assert process.returncode == 0, f"muster {' '.join(words)}: {problems}{out}"
        return out

    def new_release(self, model: str, like: str, folder: Path) -> tuple[str, Path, Path]:
        """Make and sign, offline, a release that is as good as `like`: its files under a new name.

        Returns:
            Its version, its bundle's folder, and the file with the signatures.
        """
        signed_before = len(list((self.operator / "metadata").glob(f"*.release-{model}.json")))
        version = f"3.{signed_before}.0"
        bundle = folder / version
        shutil.copytree(self.folder / "bundles" / model / like, bundle)
        old = (bundle / "bundle.json").read_bytes()
        manifest = msgspec.structs.replace(parse_manifest(old), version=version, release=signed_before + 1)
        new = encode_manifest(manifest)
        (bundle / "bundle.json").write_bytes(new)
        # Simulated devices answer as this says.
        truths = self.folder / "truth"
        shutil.copyfile(truths / f"{digest(old)}.npz", truths / f"{digest(new)}.npz")
        signed = folder / f"{version}.signed.json"
        self.run_muster("model", "sign", str(bundle), "--operator", str(self.operator), "--out", str(signed))
        return version, bundle, signed

    def end_rollouts(self, model: str) -> None:
        """Abort what a test that failed may have left under way."""
        for each in self.ask(f"/rollouts?model={model}")["rollouts"]:
            if each["state"] in ("running", "paused"):
                self.ask(f"/rollouts/{each['id']}/abort", {"reason": "a test is over"})

    def new_operator(self, role: str) -> tuple[str, str]:
        """Make an operator. Returns the name, and the one-time link as an admin would send it."""
        name = f"{role}-{secrets.token_hex(3)}"
        made = self.ask("/operators", {"name": name, "role": role, "reason": "a test of the pages"})
        return name, str(made["link"]["link"])


@contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    """Tell the whole story, and keep its fleet until the end of the block."""
    already = os.environ.get("MUSTER_DEMO_DIR")
    if already:
        yield _found(Path(already).absolute())
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-c", MUSTER, "demo", "--dir", str(folder), "--http-port", str(port)]
    command += ["--devices", str(DEVICES)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines: list[str] = []
        ready = threading.Event()

        def listen() -> None:
            for line in process.stdout or ():
                lines.append(line)
                if _URL.search(line):
                    ready.set()
            ready.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            assert ready.wait(READY_S), f"no fleet after {READY_S} s:\n{''.join(lines)[-4000:]}"
            assert process.poll() is None, f"the demo ended:\n{''.join(lines)[-4000:]}"
            yield _found(folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def find_chromium() -> str | None:
    """Return the path of a Chromium; None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


def violations(page: Page) -> list[str]:
    """Return what axe finds serious or critical on the page as it is, a line each."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES)
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:3]
    ]


def eventually(is_so: object, what: str, within_s: float = 30.0) -> None:
    """Wait until the callable `is_so` returns something true; fail with `what` otherwise."""
    assert callable(is_so)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def _found(folder: Path) -> Demo:
    running = json.loads((folder / "controller" / "server.json").read_text(encoding="utf-8"))
    return Demo(folder, str(running["url"]))
