"""What the classes of a release are called, as its manifest says."""

from muster_controller.registry.errors import RegistryError
from muster_controller.releases import Releases
from muster_shared.errors import WireError
from muster_shared.ids import ModelName


def class_names(releases: Releases, model: str, version: str) -> tuple[str, ...]:
    """Return the labels by index; none, of a release that has none or is gone."""
    try:
        release = releases.release(ModelName(model), version)
        manifest = None if release is None else releases.manifest(release.bundle_sha256)
    except (RegistryError, WireError):
        return ()
    return () if manifest is None else tuple(manifest.labels)
