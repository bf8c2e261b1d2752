"""Routes: models, blobs and trust metadata. Everything that is taken is verified before it is kept."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse

from muster_controller.api.authentication import require
from muster_controller.api.hub import Change
from muster_controller.api.schemas import (
    BlobStored,
    ModelPage,
    ModelView,
    OfflineTrust,
    Publication,
    Published,
    TrustChanged,
    TrustPage,
)
from muster_controller.api.services import Given
from muster_controller.api.views import model_views
from muster_controller.errors import NotFound
from muster_controller.operators.roles import Permission
from muster_controller.registry.metadata import RELEASE_PREFIX, release_role
from muster_shared import ids
from muster_shared.bundle import FILE_BYTES_MAX, parse_manifest
from muster_shared.ids import ModelName

router = APIRouter()

READ = [require(Permission.VIEW)]
PUBLISH = [require(Permission.PUBLISH)]

METADATA: dict[int | str, dict[str, Any]] = {
    200: {"description": "As it was signed.", "content": {"application/json": {}}}
}
BYTES: dict[int | str, dict[str, Any]] = {200: {"description": "It.", "content": {"application/octet-stream": {}}}}

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 in lower-case hex.")]


@router.get("/models", tags=["models"], dependencies=READ)
def list_models(
    given: Given,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 1000,
    cursor: Annotated[str | None, Query(max_length=64, description="`next` of the page before.")] = None,
) -> ModelPage:
    """Models that an operator has delegated or published, by name."""
    found = [each for each in _models(given) if cursor is None or each.name > cursor]
    return ModelPage(models=found[:limit], next=found[limit - 1].name if len(found) > limit else None)


@router.get("/models/{model}", tags=["models"], dependencies=READ)
def show_model(given: Given, model: str) -> ModelView:
    """One model: its versions, which of them new devices get, and how many devices serve each."""
    found = next((each for each in _models(given) if each.name == model), None)
    if found is None:
        raise NotFound("model", model)
    return found


@router.get("/models/{model}/metadata", tags=["models"], dependencies=READ, response_class=Response, responses=METADATA)
def model_metadata(given: Given, model: str) -> Response:
    """The current signed metadata of the model's release role: what the next release is signed upon."""
    repository = given.releases.repository
    found = repository.role_metadata(release_role(ModelName(model))) if repository.is_ready else None
    if found is None:
        raise NotFound("model", model)
    return Response(found, media_type="application/json")


@router.post("/models/{model}/releases", tags=["models"], dependencies=PUBLISH, status_code=201)
async def publish_release(given: Given, model: str, publication: Publication, response: Response) -> Published:
    """Take signed metadata with the release that it adds. The files go to `PUT /blobs/{sha256}` before."""
    name = ModelName(ids.name(model, "model"))
    manifest = None if publication.manifest is None else publication.manifest.encode()
    metadata = publication.metadata.encode()
    changed = await anyio.to_thread.run_sync(given.releases.publish, name, manifest, metadata, given.now())
    if changed:
        said = "renewed or revoked" if manifest is None else f"{name} {parse_manifest(manifest).version}"
        await given.republish_trust("release_published", name, said)
        given.hub.changed(Change("model", name))
    else:
        response.status_code = 200
    versions = [release.version for release in given.releases.releases() if release.model == name]
    return Published(changed=changed, model=name, versions=versions)


@router.get("/blobs/{sha256}", tags=["blobs"], dependencies=READ, response_class=FileResponse, responses=BYTES)
@router.head("/blobs/{sha256}", tags=["blobs"], dependencies=READ, response_class=FileResponse, include_in_schema=False)
def read_blob(given: Given, sha256: Digest) -> FileResponse:
    """A file by its content; ranges are served."""
    blobs = given.releases.blobs
    digest = ids.sha256(sha256)
    if not blobs.has(digest):
        raise HTTPException(404, f"there is no blob {sha256}; a bundle's files are uploaded when it is published")
    return FileResponse(
        blobs.path(digest),
        media_type="application/octet-stream",
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


@router.put(
    "/blobs/{sha256}",
    tags=["blobs"],
    dependencies=PUBLISH,
    max_body_size=FILE_BYTES_MAX,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def store_blob(
    given: Given,
    request: Request,
    response: Response,
    sha256: Digest,
    content_length: Annotated[int, Header(ge=1, le=FILE_BYTES_MAX, description="Bytes of the whole file.")],
) -> BlobStored:
    """Store a file under its SHA-256. It is streamed to disk and kept only if it hashes to its name."""
    digest, blobs = ids.sha256(sha256), given.releases.blobs
    is_new = not blobs.has(digest)
    body = _Body(request.stream())
    await anyio.to_thread.run_sync(blobs.put, body, digest, content_length)
    if is_new:
        response.status_code = 201
    else:
        await body.drain()  # A client that is still sending would see a broken connection, not the answer.
    return BlobStored(sha256=sha256, length=blobs.length(digest), created=is_new)


@router.get("/trust", tags=["trust"], dependencies=READ)
def list_trust(given: Given) -> TrustPage:
    """The TUF metadata that devices get, all in one page."""
    files = [name for message in given.releases.trust_messages() for name in message.files]
    return TrustPage(files=sorted(files), expiries=given.expiries())


@router.get("/trust/online-keys", tags=["trust"], dependencies=READ, response_class=Response, responses=METADATA)
def online_keys(given: Given) -> Response:
    """The public halves of this controller's keys: what the operator's offline keys vouch for."""
    return Response(given.online_keys(), media_type="application/json")


@router.get("/trust/{file:path}", tags=["trust"], dependencies=READ, response_class=Response, responses=METADATA)
def read_trust(given: Given, file: str) -> Response:
    """One metadata file, exactly as it was signed."""
    for message in given.releases.trust_messages():
        if file in message.files:
            return Response(message.files[file], media_type="application/json")
    raise HTTPException(404, f"there is no metadata file {file!r}; GET /api/v1/trust lists them")


@router.post("/trust/offline", tags=["trust"], dependencies=PUBLISH)
async def bring_offline(given: Given, offline: OfflineTrust) -> TrustChanged:
    """Take the operator's next root and targets."""
    before = given.releases.repository.assignment_keys()
    changed = await anyio.to_thread.run_sync(
        given.releases.accept_offline,
        offline.root.encode(),
        offline.targets.encode(),
        offline.keys.encode(),
        given.now(),
        [each.encode() for each in offline.between],
        {role: each.encode() for role, each in offline.releases.items()},
    )
    if changed:
        told = (each for each in given.expiries() if each.role in ("root", "targets"))
        roles = ", ".join(f"{each.role} {each.version}" for each in told)
        await given.republish_trust("trust_changed", "trust", f"offline metadata: {roles}")
        if before not in (frozenset(), given.releases.repository.assignment_keys()):
            await given.fleet.call(lambda fleet: fleet.sign_anew())
        given.hub.changed(Change("model", "all"))
    return TrustChanged(changed=changed)


def _models(given: Given) -> list[ModelView]:
    repository = given.releases.repository
    roles = repository.roles() if repository.is_ready else ()
    names = [ModelName(role.removeprefix(RELEASE_PREFIX)) for role in roles]
    return model_views(given.committed(), names, given.releases.releases())


class _Body:
    """A request's body as a file that a worker thread reads; the event loop feeds it piece by piece."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            piece = anyio.from_thread.run(self._next)
            if piece is None:
                return b""
            self._rest = piece
        given, self._rest = self._rest[:size], self._rest[size:]
        return given

    async def drain(self) -> None:
        async for _ in self._stream:
            pass

    async def _next(self) -> bytes | None:
        return await anext(self._stream, None)
