"""Bundles on their way to a controller: signed with the keys of a test's operator, and sent by the API."""

from datetime import UTC, datetime
from pathlib import Path

import httpx

from harness.bundles import release_ref
from muster_controller.registry.operator import sign_release
from muster_shared.bundle import Manifest, digest, parse_manifest
from muster_shared.messages import ReleaseRef


def sign(operator: Path, bundle: Path, http: httpx.Client) -> bytes:
    """Return the metadata of the bundle's model with the bundle in it, above what the controller has."""
    current = http.get(f"/models/{_manifest(bundle).model}/metadata")
    base = current.content if current.is_success else None
    return sign_release(operator, bundle, base, datetime.now(UTC)).metadata


def put_blob(http: httpx.Client, raw: bytes, sha256: str | None = None) -> httpx.Response:
    """Send a file, under its digest or another name."""
    headers = {"Content-Type": "application/octet-stream"}
    return http.put(f"/blobs/{sha256 or digest(raw)}", content=raw, headers=headers)


def put_files(http: httpx.Client, bundle: Path) -> None:
    """Send all files that the bundle's manifest names."""
    for file in _manifest(bundle).files:
        put_blob(http, (bundle / file.path).read_bytes()).raise_for_status()


def publish(operator: Path, bundle: Path, http: httpx.Client) -> ReleaseRef:
    """Sign and publish a bundle; return the release."""
    put_files(http, bundle)
    raw = (bundle / "bundle.json").read_bytes()
    body = {"metadata": sign(operator, bundle, http).decode(), "manifest": raw.decode()}
    http.post(f"/models/{_manifest(bundle).model}/releases", json=body).raise_for_status()
    return release_ref(raw)


def _manifest(bundle: Path) -> Manifest:
    return parse_manifest((bundle / "bundle.json").read_bytes())
