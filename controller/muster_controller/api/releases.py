"""Routes: releases beyond their manifests: who signed them, where they serve, how two differ, whether one would do."""

from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query

from muster_controller.api.authentication import require
from muster_controller.api.release_views import comparison, release_trust, use_view, version_of
from muster_controller.api.schemas import FileView, Publication, VersionDetail
from muster_controller.api.schemas.releases import ReleaseCheck, ReleaseTrust, VersionComparison, VersionUse
from muster_controller.api.services import Given, Services
from muster_controller.api.views import version_detail
from muster_controller.errors import NotFound
from muster_controller.fleet_index.view import Filter
from muster_controller.operators.roles import Permission
from muster_controller.registry.metadata import path_of, release_role
from muster_controller.registry.signatures import newest_targets, past_target, role_steps, role_trusts
from muster_controller.served import Use, use_of
from muster_shared import ids
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef

router = APIRouter(tags=["models"])

READ = [require(Permission.VIEW)]
PUBLISH = [require(Permission.PUBLISH)]

Version = Annotated[str, Query(max_length=64, description="A release of the model.")]


@dataclass(frozen=True)
class Known:
    """A release that is published, or was until it was revoked."""

    release: ReleaseRef
    manifest: Manifest
    is_revoked: bool


@router.get("/models/{model}/versions/{version}", dependencies=READ)
def show_version(given: Given, model: str, version: str) -> VersionDetail:
    """One release, revoked or not: what its manifest says."""
    found = known_release(given, model, version)
    return version_detail(found.release, found.manifest, is_revoked=found.is_revoked)


@router.get("/models/{model}/versions/{version}/trust", dependencies=READ)
def show_release_trust(given: Given, model: str, version: str) -> ReleaseTrust:
    """Who signed a release: the keys of its role, how many of them it takes, and whether it was revoked."""
    return trust_of(given, known_release(given, model, version))


@router.get("/models/{model}/versions/{version}/use", dependencies=READ)
def show_release_use(given: Given, model: str, version: str) -> VersionUse:
    """Where a release serves now, which hardware picked which variant, and how fast it runs there."""
    found = known_release(given, model, version)
    name, number = found.release.model, found.release.version
    return use_view(name, number, served(given, name, number))


@router.get("/models/{model}/compare", dependencies=READ)
def compare_versions(given: Given, model: str, before: Version, after: Version) -> VersionComparison:
    """Two releases of a model side by side: card, files, claims, and how fast each runs on each class of device."""
    old, new = known_release(given, model, before), known_release(given, model, after)
    uses = (served(given, each.release.model, each.release.version) for each in (old, new))
    return comparison(model, (old.manifest, new.manifest), *uses)


@router.post("/models/{model}/releases/check", dependencies=PUBLISH)
async def check_release(given: Given, model: str, publication: Publication) -> ReleaseCheck:
    """Say what publishing this would do, and which files have to be uploaded before. Changes nothing."""
    name = ModelName(ids.name(model, "model"))
    manifest = None if publication.manifest is None else publication.manifest.encode()
    metadata = publication.metadata.encode()
    found = await anyio.to_thread.run_sync(given.releases.check, name, manifest, metadata, given.now())
    view = given.committed().view
    missing = found.missing if found.change.is_new else ()
    return ReleaseCheck(
        model=name,
        version=None if found.manifest is None else found.manifest.version,
        is_new=found.change.is_new,
        added=[version_of(path) for path in found.change.added],
        removed={
            version: view.count(Filter(model=name, version=version))
            for version in map(version_of, found.change.removed)
        },
        missing=[FileView(path=file.path, sha256=file.sha256, length=file.length) for file in missing],
        bytes=sum(file.length for file in missing),
    )


def known_release(given: Services, model: str, version: str) -> Known:
    """Return a release that is published, or was. Raises NotFound, and WireError where these are no names."""
    name, number = ModelName(ids.name(model, "model")), ids.version(version)
    release = given.releases.release(name, number)
    if release is not None:
        manifest = given.releases.manifest(release.bundle_sha256)
        if manifest is not None:
            return Known(release, manifest, is_revoked=False)
    repository, role = given.releases.repository, release_role(name)
    if repository.is_ready:
        target = past_target(role, path_of(name, number), repository.role_versions(role))
        manifest = None if target is None else given.releases.past_manifest(target.sha256, target.length)
        if target is not None and manifest is not None:
            ref = ReleaseRef(
                model=name,
                version=number,
                release=target.release,
                bundle_sha256=target.sha256,
                bundle_length=target.length,
            )
            return Known(ref, manifest, is_revoked=True)
    raise NotFound("model", f"{model} {version}")


def trust_of(given: Services, found: Known) -> ReleaseTrust:
    """Return who signed a release, and what became of it."""
    name, version = found.release.model, found.release.version
    repository, role = given.releases.repository, release_role(name)
    messages = repository.trust_messages()
    targets = newest_targets(messages)
    trust = next((each for each in role_trusts(messages) if each.role == role), None)
    if trust is None or targets is None:  # Its delegation was taken back.
        raise NotFound("model", name)
    steps = role_steps(role, targets, repository.role_versions(role))
    return release_trust(name, version, found.manifest.target, trust, steps, is_revoked=found.is_revoked)


def served(given: Services, model: ModelName, version: str) -> Use:
    """Return where a release serves, of the devices that may be seen."""
    fleet = given.committed()
    return use_of(fleet, model, version) if given.is_partial else given.served.of(fleet, model, version, given.clock())
