"""A thin client of the HTTP API, and where the controller is found. Problems become messages and exit codes."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx
import typer
from rich.console import Console

from muster_controller.config import DATA, HOST, PORT
from muster_controller.errors import ServerUnavailable
from muster_controller.whereabouts import read_running
from muster_shared.errors import MusterError

URL_VARIABLE = "MUSTER_URL"
TIMEOUT_S = 40.0  # Longer than the controller lets an order wait.
PAGE = 200  # What every listing gives at once.
PIECE_BYTES = 256 * 1024

EXIT_CODES = "Exit codes: 0 done, 1 refused or failed, 2 usage, 4 no such thing, 5 conflict, 6 no controller answers."
_EXITS = {404: 4, 409: 5, 503: 6}


class ApiProblem(MusterError):
    """The controller refused (RFC 9457)."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind


class Api:
    """One controller's API. Use it as a context manager."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, str | int | list[str]] | None = None) -> Any:
        """Return the JSON at `path`. Raises ApiProblem, ServerUnavailable."""
        return self._send("GET", path, params=dict(params or {})).json()

    def pages(self, path: str, name: str, limit: int, params: Mapping[str, str | int | list[str]]) -> list[Any]:
        """Return the first `limit` of a listing, page after page; `name` is what its pages call their lines."""
        found: list[Any] = []
        query = dict(params)
        while len(found) < limit:
            page = self.get(path, {**query, "limit": min(PAGE, limit - len(found))})
            found += page[name]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        return found

    def post(self, path: str, body: object) -> Any:
        return self._send("POST", path, json=body).json()

    def read(self, path: str) -> bytes:
        return self._send("GET", path).content

    def has(self, path: str) -> bool:
        try:
            self._send("HEAD", path)
        except ApiProblem as problem:
            if problem.status == 404:
                return False
            raise
        return True

    def upload(self, file: Path, sha256: str, advanced: Callable[[int], None]) -> None:
        """Store `file` as a blob unless it is there; `advanced` is told of bytes as they go."""
        length = file.stat().st_size
        if self.has(f"/blobs/{sha256}"):
            advanced(length)
            return

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
                    advanced(len(piece))

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        self._send("PUT", f"/blobs/{sha256}", content=pieces(), headers=headers)

    def _send(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            raise ServerUnavailable(
                f"no controller answers at {self.url} ({error}); start one with `muster serve`, or name it with --url"
            ) from error
        if answer.is_success:
            return answer
        try:
            said = answer.json() if answer.content else {}
        except ValueError:
            said = {}
        kind = str(said.get("type", "")).rpartition(":")[2]
        raise ApiProblem(answer.status_code, kind, str(said.get("detail", f"{method} {path}: {answer.status_code}")))


def connect(context: typer.Context) -> Api:
    """Return the API of the controller that the command line names, else of the one that runs in ./muster-data."""
    given = context.find_root().obj
    return Api(find_url(given if isinstance(given, str) else None))


def find_url(given: str | None) -> str:
    """Return where the controller is: as given, else as the one that runs in ./muster-data says."""
    if given:
        return given
    running = read_running(Path(os.environ.get("MUSTER_DATA", DATA)))
    return running.url if running is not None else f"http://{HOST}:{PORT}"


def refuse(error: MusterError | OSError) -> NoReturn:
    """Say on stderr what is wrong and leave with the exit code that fits."""
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    code = 1
    match error:
        case ApiProblem(status=status):
            code = _EXITS.get(status, 1)
        case ServerUnavailable():
            code = 6
        case _:
            pass
    raise typer.Exit(code)
