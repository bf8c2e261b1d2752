"""How a broker's program becomes a child process: its port is free, its files are written, and it ends when we do.

It starts one child and knows nothing of what comes after: watching it is `embedded`'s.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from muster_controller.broker.programs import BrokerUnavailable

# Runs first in the child, then becomes the broker (same pid). `preexec_fn` is not safe in a process with threads.
# 1 is PR_SET_PDEATHSIG: the kernel ends the broker when we die, however that happens. Only Linux has it; elsewhere a
# controller that is killed leaves its broker behind, and the next one finds the port taken.
_LAUNCHER = """
import contextlib, ctypes, os, resource, signal, sys
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the controller ended meanwhile")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < 1 << 20 else 1 << 20, hard))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(command: Sequence[str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`; what it says goes to `output`. From the thread that will watch it. Raises OSError.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends.
    """
    with output.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the controller, which then stops us in its own order.
        )


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write a program's files, each whole or not at all. Raises OSError."""
    for name, text in files.items():
        fresh = folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)


def require_free(host: str, port: int) -> None:
    """Raises BrokerUnavailable: somebody has the port, or the host is not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None,
            port,
            family=socket.AF_UNSPEC if host else socket.AF_INET,
            flags=socket.AI_PASSIVE,
            type=socket.SOCK_STREAM,
        )[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # A closed connection's port is free.
            sock.bind(address)
    except OSError as error:
        raise BrokerUnavailable(
            f"port {port} on {host or 'this machine'} cannot be used for the embedded broker: {error.strerror}",
            "end the program that has it, or choose another with --broker-port",
        ) from error
