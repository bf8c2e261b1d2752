"""A thin client of the HTTP API, and where the controller and one's token are found. Problems become exit codes.

The token: MUSTER_TOKEN, else that of `muster login` for this URL, else the local token of the data folder whose
controller this is. Which controller is meant: `contexts`.

An order carries an idempotency key. When the connection breaks, or a proxy in between says that nobody answers, it is
sent again with the same key: the controller carries it out once.
"""

import os
import random
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console

from muster_controller.cli import contexts, logins, output
from muster_controller.cli.contexts import Chosen, Said
from muster_controller.config import DATA, HOST, PORT
from muster_controller.errors import NotFound, ServerUnavailable
from muster_controller.operators.local import read_local
from muster_controller.whereabouts import read_running
from muster_shared.errors import MusterError

URL_VARIABLE = "MUSTER_URL"
TOKEN_VARIABLE = "MUSTER_TOKEN"
CA_VARIABLE = "MUSTER_CA"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 40.0  # Longer than the controller lets an order wait.
PAGE = 200  # What every listing gives at once.
PIECE_BYTES = 256 * 1024
TRIES = 4  # Of one request, the first included.
WAIT_S = 0.25  # Before the second try; doubled for each further one, and spread by a half.
AWAY = (502, 503, 504)
LINE_BYTES_MAX = 1024 * 1024

EXIT_CODES = (
    "Exit codes: 0 done, 1 refused or failed, 2 usage, 4 no such thing, 5 conflict, 6 no controller answers, 7 log in,"
    " 130 stopped by Ctrl-C."
)
_EXITS = {401: 7, 404: 4, 409: 5, 503: 6}


class ApiProblem(MusterError):
    """The controller refused (RFC 9457)."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Where:
    """A controller, and how it knows us."""

    url: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    """PEM of the CA of its certificate, which counts alone; None: those that this machine trusts."""
    own_ca: Path | None = None
    """Of a controller on this machine: the root of its fleet CA, which counts beside those."""


class Api:
    """One controller's API. Use it as a context manager."""

    def __init__(self, where: Where, *, timeout_s: float = TIMEOUT_S, tries: int = TRIES) -> None:
        self._timeout_s = timeout_s
        self._tries = tries
        self.url = where.url.rstrip("/")
        self.token = where.token
        parts = urlsplit(self.url)
        self.is_private = parts.scheme == "https" or parts.hostname in LOOPBACK
        """Whether nobody in between can read what is sent."""
        if where.token is not None and not self.is_private:
            raise ServerUnavailable(f"{self.url} would carry your token in the clear; use https")
        headers = {} if where.token is None else {"Authorization": f"Bearer {where.token}"}
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1", timeout=timeout_s, trust_env=False, headers=headers, verify=_trust(where)
        )

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
        """Return the JSON of the answer, None of an empty one. Raises ApiProblem, ServerUnavailable."""
        answer = self._send("POST", path, json=body)
        return answer.json() if answer.content else None

    def put(self, path: str, body: object) -> Any:
        """Return the JSON of the answer. Raises ApiProblem, ServerUnavailable."""
        return self._send("PUT", path, json=body).json()

    def delete(self, path: str) -> None:
        """Raises ApiProblem, ServerUnavailable."""
        self._send("DELETE", path, headers={"Content-Type": "application/json"})

    def read(self, path: str) -> bytes:
        return self._send("GET", path).content

    @contextmanager
    def lines(
        self,
        path: str,
        params: Mapping[str, str | int | list[str]],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """Give the lines of a long text, each with its end, as they arrive. Raises ApiProblem, ServerUnavailable."""
        asked = self._http.stream("GET", path, params=dict(params), headers=dict(headers or {}))
        with self._reached(), asked as answer:
            if not answer.is_success:
                answer.read()
                raise _problem(answer, f"GET {path}")
            yield _lines(answer.iter_bytes())

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

        sent = 0

        def pieces() -> Iterator[bytes]:
            nonlocal sent
            advanced(-sent)  # Of a try that broke off.
            sent = 0
            with file.open("rb") as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
                    sent += len(piece)
                    advanced(len(piece))

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        self._send("PUT", f"/blobs/{sha256}", pieces, headers=headers)

    def _send(
        self, method: str, path: str, content: Callable[[], Iterator[bytes]] | None = None, **how: Any
    ) -> httpx.Response:
        """Ask, and again where the answer got lost. Raises ApiProblem, ServerUnavailable."""
        headers = dict(how.pop("headers", {}))
        if method in ("POST", "PUT", "DELETE") and content is None:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        began = time.monotonic()
        for attempt in range(1, self._tries + 1):
            is_last = attempt == self._tries or time.monotonic() - began >= self._timeout_s
            if content is not None:
                how["content"] = content()
            try:
                with self._reached():
                    answer = self._http.request(method, path, headers=headers, **how)
            except ServerUnavailable:
                if is_last or time.monotonic() - began >= self._timeout_s:
                    raise
            else:
                if answer.is_success:
                    return answer
                problem = _problem(answer, f"{method} {path}")
                is_away = answer.status_code in AWAY or (attempt > 1 and _is_under_way(problem))
                if is_last or not is_away:
                    raise problem
            time.sleep(WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerUnavailable(
                f"no controller answers at {self.url} ({error}); start one with `muster serve`, or name it with --url"
            ) from error


def _trust(where: Where) -> ssl.SSLContext | bool:
    """Return whose certificates count. Raises ServerUnavailable."""
    if not where.url.startswith("https:"):
        return True
    try:
        context = ssl.create_default_context(cafile=None if where.ca is None else str(where.ca))
        if where.ca is None and where.own_ca is not None and where.own_ca.is_file():
            context.load_verify_locations(cafile=str(where.own_ca))
        return context
    except OSError as error:  # ssl.SSLError is one.
        raise ServerUnavailable(f"{where.ca or where.own_ca} is no file of certificates (PEM): {error}") from error


def _problem(answer: httpx.Response, asked: str) -> ApiProblem:
    try:
        said = answer.json() if answer.content else {}
    except ValueError:
        said = {}
    kind = str(said.get("type", "")).rpartition(":")[2]
    return ApiProblem(answer.status_code, kind, str(said.get("detail", f"{asked}: {answer.status_code}")))


def is_away(error: MusterError, *, was_away: bool) -> bool:
    """Return whether the controller may answer again. One that comes back has another token on this machine (401)."""
    if isinstance(error, ApiProblem):
        return error.status in AWAY or (was_away and error.status == 401)
    return isinstance(error, ServerUnavailable)


def _is_under_way(problem: ApiProblem) -> bool:
    """Whether the first try of an order is still being carried out."""
    return problem.status == 409 and "being carried out" in problem.detail


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give whole lines, and pieces of those that are longer than LINE_BYTES_MAX."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > LINE_BYTES_MAX:
            yield rest
            rest = b""
    if rest:
        yield rest


def connect(context: typer.Context) -> Api:
    """Return the API of the controller that is meant (`contexts`), else of the one that runs in ./muster-data."""
    try:
        return Api(where_of(context))
    except MusterError as error:
        refuse(error)


def where_of(context: typer.Context, url: str | None = None) -> Where:
    """Return the controller that is meant, and our token for it; `url` names it before all others.

    Raises MusterError.
    """
    chosen = chosen_of(context, url)
    return find(chosen.url, chosen.ca)


def chosen_of(context: typer.Context, url: str | None = None) -> Chosen:
    """Return which controller the command line and its surroundings name. Raises MusterError."""
    root = context.find_root()

    def given(name: str) -> str | None:
        source = root.get_parameter_source(name)
        found = root.params.get(name)
        return str(found) if found and (source is None or source.name == "COMMANDLINE") else None

    if url is not None:
        return Chosen(url, ca_of(context))
    said = Said(
        given("url"),
        given("context_name"),
        ca_of(context),
        os.environ.get(URL_VARIABLE) or None,
        os.environ.get(contexts.CONTEXT_VARIABLE) or None,
    )
    needs_file = not said.url and (bool(said.context) or not said.env_url)
    return contexts.choose(said, contexts.read() if needs_file else contexts.Contexts())


def ca_of(context: typer.Context) -> Path | None:
    """Return the CA that the command line names."""
    found = context.find_root().params.get("ca")
    return found if isinstance(found, Path) else None


def find(given: str | None, ca: Path | None = None) -> Where:
    """Return where the controller is, and our token for it.

    Args:
        given: Its URL, if the command line says so; else as the one that runs in ./muster-data says.
    Raises:
        LoginsUnreadable.
    """
    data = Path(os.environ.get("MUSTER_DATA", DATA))
    running = read_running(data)
    url = (given or (running.url if running is not None else f"http://{HOST}:{PORT}")).rstrip("/")
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and (login := logins.find(url)) is not None:
        token = login.token
    is_here = running is not None and url == running.url
    if token is None and is_here:
        token = read_local(data)
    return Where(url, token, ca, data / "ca" / "root.pem" if is_here else None)


def refuse(error: MusterError | OSError) -> NoReturn:
    """Say on stderr what is wrong and leave with the exit code that fits."""
    if isinstance(error, ServerUnavailable) and output.is_repeated():
        raise output.Lost(str(error)) from error
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    code = 1
    match error:
        case ApiProblem(status=status):
            code = _EXITS.get(status, 1)
        case ServerUnavailable():
            code = 6
        case NotFound():
            code = _EXITS[404]
        case _:
            pass
    raise typer.Exit(code)
