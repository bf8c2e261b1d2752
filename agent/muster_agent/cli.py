"""`muster-agent`: run the daemon, ask it how it is, ask it for an inference. What is slow to import waits for its use.

It has no part in what the daemon does: `status` and `infer` are callers of the local endpoint like any other.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muster_agent import __version__

OK, FAILED, USAGE, UNREACHABLE, BUSY = 0, 1, 2, 3, 4
CONFIG = Path("/etc/muster-agent/agent.toml")
TIMEOUT_S = 60.0
_EPILOG = """\
exit codes:
  0  it worked
  1  the agent refused the request, or ended by a fault
  2  the command line or the configuration is wrong
  3  no agent answers at the endpoint
  4  another agent has the data folder
"""
_CONFIGURATION = """\
a configuration that is enough:
  fleet = "default"
  device = "camera-07"
  device_class = "x86-cpu"
  broker_url = "mqtt://127.0.0.1:1883"
  data_dir = "/var/lib/muster-agent"
  bootstrap_root = "/etc/muster-agent/root.json"
"""
_COMMANDS = ("run", "status", "infer", "completion")
_COMPLETIONS = {
    "bash": "complete -W '{words}' -o default muster-agent",
    "zsh": "#compdef muster-agent\ncompctl -k '({words})' -f muster-agent",
    "fish": "complete -c muster-agent -n __fish_use_subcommand -f -a '{words}'",
}


class CommandFailed(Exception):
    """Ends the command with a message for the operator and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "run":
                _run(options.config)
            case "status":
                _status(options)
            case "infer":
                _infer(options)
            case "completion":
                print(_COMPLETIONS[options.shell].format(words=" ".join(_COMMANDS)))
    except CommandFailed as error:
        print(f"muster-agent: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        return FAILED
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muster-agent",
        description="Serves models to local applications and keeps them current from signed releases.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"muster-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run the daemon until SIGTERM",
        epilog=_CONFIGURATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(run)

    status = commands.add_parser("status", help="show what the agent on this device does")
    _add_config(status)
    _add_endpoint(status)
    status.add_argument("--json", action="store_true", help="print the agent's answer as it is")

    infer = commands.add_parser("infer", help="ask a model on this device for an inference")
    infer.add_argument("model", metavar="MODEL")
    given = infer.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="FILE", help=".npy (one input), .npz (by input name), or .json")
    given.add_argument("--json", metavar="REQUEST", help="a V2 request, or only its inputs, as JSON")
    _add_config(infer)
    _add_endpoint(infer)

    completion = commands.add_parser("completion", help="print a completion script for a shell")
    completion.add_argument("shell", choices=sorted(_COMPLETIONS))
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint", metavar="URL", help="http://host:port or unix:/path, instead of the configured one"
    )


def _run(path: Path) -> None:
    from muster_agent.config import load_config
    from muster_agent.errors import AgentRunning, ConfigInvalid, JournalFailed

    try:
        config = load_config(path, os.environ)

        from muster_agent import daemon

        daemon.run(config, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error
    except AgentRunning as error:
        raise CommandFailed(BUSY, str(error)) from error
    except JournalFailed as error:
        raise CommandFailed(FAILED, str(error)) from error


# -- the local endpoint ------------------------------------------------------------------------------------------------


def _endpoint(options: argparse.Namespace) -> str:
    """Return where the agent listens: as given, as it said when it started, or as it is configured."""
    if options.endpoint:
        return str(options.endpoint)
    from muster_agent.config import load_config
    from muster_agent.errors import ConfigInvalid

    try:
        config = load_config(options.config, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, f"{error} (or give --endpoint)") from error
    if config.http.address is None:
        return f"unix:{config.http.unix_socket}"
    host, port = config.http.address
    if port == 0:
        try:
            return (config.data_dir / "endpoint").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CommandFailed(UNREACHABLE, f"no agent has run in {config.data_dir} yet; start it first") from error
    return f"http://{host}:{port}"


def _ask(endpoint: str, method: str, path: str, body: bytes | None = None) -> Any:
    """Return the agent's JSON answer. Raises CommandFailed when there is none, or it is an error."""
    import json
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    if endpoint.startswith("unix:"):
        connection: HTTPConnection = _unix_connection(endpoint.removeprefix("unix:"))
    else:
        parts = urlsplit(endpoint)
        if parts.scheme != "http" or not parts.hostname:
            raise CommandFailed(USAGE, f"{endpoint!r} is neither http://host:port nor unix:/path")
        connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException) as error:
        raise CommandFailed(UNREACHABLE, f"no agent answers at {endpoint} ({error}); is it running?") from error
    finally:
        connection.close()
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise CommandFailed(UNREACHABLE, f"what answers at {endpoint} is no agent") from error
    if response.status != 200:
        said = answer.get("error", answer) if isinstance(answer, dict) else answer
        raise CommandFailed(FAILED, f"the agent answers {response.status}: {said}")
    return answer


def _unix_connection(path: str) -> Any:
    import socket
    from http.client import HTTPConnection

    class UnixConnection(HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(TIMEOUT_S)
            self.sock.connect(path)

    return UnixConnection("localhost")


# -- status ------------------------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> None:
    answer = _ask(_endpoint(options), "GET", "/v1/status")
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


def _version(release: Any) -> str:
    return release["version"] if release else "-"


# -- infer -------------------------------------------------------------------------------------------------------------


def _infer(options: argparse.Namespace) -> None:
    import json

    endpoint = _endpoint(options)
    if options.json is not None:
        request = _request_of(options.json, "--json")
    elif options.input.suffix in (".npy", ".npz"):
        specs = _ask(endpoint, "GET", f"/v2/models/{options.model}")["inputs"]
        request = {"inputs": _tensors(options.input, specs)}
    else:
        try:
            request = _request_of(options.input.read_text(encoding="utf-8"), str(options.input))
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(USAGE, f"{options.input} cannot be read: {error}") from error
    answer = _ask(endpoint, "POST", f"/v2/models/{options.model}/infer", json.dumps(request).encode())
    print(json.dumps(answer, indent=2))


def _request_of(text: str, where: str) -> dict[str, Any]:
    import json

    try:
        request = json.loads(text)
    except ValueError as error:
        raise CommandFailed(USAGE, f"{where} is not JSON: {error}") from error
    if isinstance(request, list):
        return {"inputs": request}
    if isinstance(request, dict) and isinstance(request.get("inputs"), list):
        return request
    raise CommandFailed(
        USAGE, f'{where} is no V2 request; write {{"inputs": [{{"name", "shape", "datatype", "data"}}]}}'
    )


def _tensors(path: Path, specs: Any) -> list[dict[str, Any]]:
    """Return the arrays in `path` as V2 tensors of the data types that the model takes."""
    import numpy as np

    from muster_agent.engines.tensors import DTYPES

    try:
        loaded = np.load(path, allow_pickle=False)
        given = {specs[0]["name"]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except (OSError, ValueError, EOFError) as error:
        raise CommandFailed(USAGE, f"{path} cannot be read: {error}") from error
    tensors: list[dict[str, Any]] = []
    for spec in specs:
        array = given.get(spec["name"])
        if array is None:
            raise CommandFailed(USAGE, f"{path} has no array {spec['name']!r}; it has {', '.join(sorted(given))}")
        dtype = DTYPES[spec["datatype"]]
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise CommandFailed(USAGE, f"{path}: {spec['name']} is {array.dtype}; the model takes {spec['datatype']}")
        tensors.append(
            {
                "name": spec["name"],
                "shape": list(array.shape),
                "datatype": spec["datatype"],
                "data": array.astype(dtype).ravel().tolist(),
            }
        )
    return tensors


if __name__ == "__main__":
    sys.exit(main())
