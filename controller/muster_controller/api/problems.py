"""Errors as RFC 9457 problems: one table says which error is which status, and nothing else in the API does."""

from collections.abc import Mapping
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from muster_controller.alerts.errors import ReceiverInvalid, TellingFailed
from muster_controller.api.problem_kinds import TYPE_PREFIX
from muster_controller.core.policy import PolicyInvalid
from muster_controller.core.rollout.events import OrderRefused
from muster_controller.core.selector import SelectorInvalid
from muster_controller.db.errors import LedgerError, LedgerMisused, LedgerRefused
from muster_controller.db.metrics_store import TooMuchAsked
from muster_controller.errors import Conflict, FleetUnavailable, KeyReused, NotFound, Stale
from muster_controller.identity.errors import EnrolmentConflict, IdentityError
from muster_controller.operators.errors import (
    Forbidden,
    LinkSpent,
    LoginLocked,
    LoginRefused,
    OidcFailed,
    OperatorExists,
    PasswordUnfit,
    Unauthenticated,
)
from muster_controller.registry.errors import (
    BlobMismatch,
    BlobMissing,
    KeyMissing,
    MetadataRefused,
    RegistryError,
    RepositoryEmpty,
    ThresholdNotMet,
    VersionConflict,
)
from muster_shared.errors import BundleError, MusterError, WireError

MEDIA_TYPE = "application/problem+json"

# The first line that fits an error counts, so a class stands before its base.
PROBLEMS: tuple[tuple[type[Exception], int, str], ...] = (
    (Unauthenticated, 401, "unauthenticated"),
    (LoginRefused, 401, "login-refused"),
    (LoginLocked, 429, "login-locked"),
    (Forbidden, 403, "forbidden"),
    (OperatorExists, 409, "operator-exists"),
    (PasswordUnfit, 422, "password-unfit"),
    (LinkSpent, 410, "link-spent"),
    (OidcFailed, 502, "oidc-failed"),
    (NotFound, 404, "not-found"),
    (Conflict, 409, "conflict"),
    (KeyReused, 422, "idempotency-key-reused"),
    (Stale, 412, "stale"),
    (OrderRefused, 409, "order-refused"),
    (VersionConflict, 409, "version-conflict"),
    (RepositoryEmpty, 409, "not-initialised"),
    (BlobMissing, 409, "blob-missing"),
    (PolicyInvalid, 422, "policy-invalid"),
    (SelectorInvalid, 422, "selector-invalid"),
    (BlobMismatch, 422, "blob-mismatch"),
    (ThresholdNotMet, 422, "threshold-not-met"),
    (MetadataRefused, 422, "metadata-refused"),
    (BundleError, 422, "bundle-invalid"),
    (WireError, 422, "name-invalid"),
    (KeyMissing, 500, "key-missing"),
    (RegistryError, 422, "registry-refused"),
    (ReceiverInvalid, 422, "receiver-invalid"),
    (TellingFailed, 502, "telling-failed"),
    (EnrolmentConflict, 409, "enrolment-conflict"),
    (IdentityError, 422, "identity-refused"),
    (TooMuchAsked, 422, "too-much"),
    (FleetUnavailable, 503, "unavailable"),
    (LedgerRefused, 500, "database-refused"),
    (LedgerMisused, 500, "internal"),
    (LedgerError, 503, "database-unavailable"),
    (MusterError, 500, "internal"),
)

log = structlog.get_logger()


class Problem(BaseModel):
    """What went wrong (RFC 9457). `type` is stable and for programs; `detail` is for people and says what to do."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:muster:problem:not-found",
                "title": "Not Found",
                "status": 404,
                "detail": "there is no rollout 'digits-1-0-0-2ab9f1'; `muster rollout list` shows what there is",
            }
        }
    )

    type: str = Field(description=f"`{TYPE_PREFIX}` and the kind. docs/api.md lists the kinds, and what to do.")
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = Field(default_factory=list, description="Which fields are wrong, if it is fields.")
    field: str | None = Field(default=None, description="Of a policy: the path of what is wrong.")
    line: int | None = Field(default=None, description="Of a policy's text: where that stands, from 1.")


class Refused(Exception):
    """A request that no route has seen: the guard's answer."""

    def __init__(self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers


def problem(
    status: int,
    kind: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
    field: str | None = None,
    line: int | None = None,
) -> JSONResponse:
    """Return the answer that tells of one problem."""
    content = Problem(
        type=f"{TYPE_PREFIX}{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_sendable(detail),
        errors=[{name: _sendable(said) for name, said in each.items()} for each in errors or []],
        field=None if field is None else _sendable(field),
        line=line,
    )
    body = content.model_dump(exclude_defaults=True)
    return JSONResponse(body, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def _sendable(said: str) -> str:
    """Return what may quote a request as UTF-8 can carry it: JSON's escapes can name half of a character."""
    return said.encode("utf-8", "replace").decode()


def classify(error: MusterError) -> tuple[int, str]:
    """Return the status and the kind of problem that `error` is."""
    return next((status, kind) for known, status, kind in PROBLEMS if isinstance(error, known))


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def on_muster_error(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MusterError)
        status, kind = classify(error)
        if status >= 500:
            log.error("request_failed", kind=kind, error=str(error))
        if isinstance(error, PolicyInvalid):
            return problem(status, kind, str(error), field=error.field, line=error.line)
        wait = {"Retry-After": str(max(1, round(error.wait_s)))} if isinstance(error, LoginLocked) else None
        return problem(status, kind, str(error), headers=wait)

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fields = [
            {"field": ".".join(str(part) for part in each["loc"]), "message": str(each["msg"])}
            for each in error.errors()
        ]
        said = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
        return problem(422, "request-invalid", f"the request does not fit: {said}", fields)

    async def on_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        kind = (
            "too-large" if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else phrase
        )  # Which Python renames.
        return problem(error.status_code, kind, str(error.detail), headers=error.headers)

    async def on_gone(_request: Request, _error: Exception) -> JSONResponse:
        return problem(400, "incomplete", "the request ended before its body did")  # Nobody is there to read it.

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("request_crashed", path=request.url.path, exc_info=error)
        return problem(500, "internal", "the controller has a bug here; its log says more")

    app.add_exception_handler(MusterError, on_muster_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(Exception, on_bug)
