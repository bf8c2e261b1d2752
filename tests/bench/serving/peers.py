"""Who we are compared with, and how each is installed and started: one entry a peer, its app in `apps`.

Peers have environments of their own under `.cache/bench/venvs`, built once from pinned versions. Each serves with its
own best-known settings for one process: no access log, no parallel workers where those only add a hop, and as many
threads as the engine takes by itself.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.serving.models import Subject
from bench.serving.wire import Form

APPS = Path(__file__).parent / "apps"
INSTALL_TIMEOUT_S = 900
ALL, TINY = ("tiny", "magika", "conv"), ("tiny",)


class PeerUnavailable(Exception):
    """It could not be installed here: it is reported as not measured."""


@dataclass(frozen=True)
class Peer:
    """`needs` empty: it runs in the workspace's own environment."""

    name: str
    form: Form
    path: str | None
    needs: tuple[str, ...]
    command: Callable[[Path, Subject, int, Path], list[str]]
    """(python, subject, port, an empty folder) -> what to run."""
    models: tuple[str, ...] = ALL


def _app(file: str, *options: str) -> Callable[[Path, Subject, int, Path], list[str]]:
    return lambda python, subject, port, _: [
        str(python),
        str(APPS / file),
        str(subject.model_file),
        str(port),
        *options,
    ]


def _mlserver(python: Path, subject: Subject, port: int, folder: Path) -> list[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,  # Else it logs each request.
    }
    model = {
        "name": subject.name,
        "implementation": "mlserver_runtime.OrtModel",
        "parameters": {"uri": str(subject.model_file)},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    (folder / "mlserver_runtime.py").write_text((APPS / "mlserver_runtime.py").read_text())
    return [str(python.parent / "mlserver"), "start", str(folder)]


_ENGINE = "onnxruntime==1.31.1"
PEERS = (
    Peer("bare httptools", "raw", None, (), _app("bare_httptools.py")),
    Peer("bare uvicorn", "v2-binary", None, (), _app("bare_uvicorn.py"), TINY),
    Peer("bare uvicorn, batched", "v2-binary", None, (), _app("bare_uvicorn.py", "--batch"), TINY),
    Peer("MLServer", "v2-json", None, ("mlserver==1.7.1", _ENGINE), _mlserver),
    Peer("LitServe", "rows", "/predict", ("litserve==0.2.19", _ENGINE), _app("litserve_app.py")),
    Peer(
        "FastAPI",
        "rows",
        "/predict",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", _ENGINE),
        _app("fastapi_app.py"),
    ),
)


def python_of(peer: Peer, venvs: Path, say: Callable[[str], None]) -> Path:
    """Return the interpreter that `peer` runs with, installing it first where that was not done.

    Raises:
        PeerUnavailable: with pip's reason.
    """
    if not peer.needs:
        return Path(sys.executable)
    return environment(venvs / peer.name.lower(), peer.needs, say)


def environment(folder: Path, requirements: Sequence[str], say: Callable[[str], None]) -> Path:
    """Return the interpreter of a virtual environment with `requirements`, made anew when those change."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    say(f"making the environment {folder.name} (once): {', '.join(requirements) or 'empty'}")
    venv.create(folder, with_pip=True, clear=True)
    if requirements:
        pip(python, ["install", *requirements])
    stamp.write_text(wanted)
    return python


def pip(python: Path, arguments: Sequence[str]) -> None:
    """Run that interpreter's pip. Raises PeerUnavailable with its last error."""
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable(f"pip took longer than {INSTALL_TIMEOUT_S} s") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise PeerUnavailable((errors or done.stderr.strip().splitlines() or ["pip gave no reason"])[-1][:300])
