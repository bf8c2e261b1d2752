"""What each release really answers right: one small file a bundle, written once from real inference.

`<folder>/<bundle sha256>.npz` holds `right`, bool [labelled inputs], and `latency_ms`, the median of one inference. A
device that only pretends to serve draws its answers from it, so that its accuracy is the release's own.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muster_shared.ids import Sha256


@dataclass(frozen=True, eq=False)
class Truth:
    """`right`: bool [labelled inputs], in the workload's order."""

    right: NDArray[np.bool_]
    latency_ms: float


class Truths:
    """The folder, read as bundles come up: a bundle may be built while devices run already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Sha256, Truth] = {}

    def of(self, bundle: Sha256) -> Truth | None:
        """Return the truth about `bundle`, or None when nobody has measured it."""
        if bundle not in self._known:
            path = _path(self._folder, bundle)
            if not path.is_file():
                return None
            with np.load(path, allow_pickle=False) as arrays:
                self._known[bundle] = Truth(arrays["right"], float(arrays["latency_ms"]))
        return self._known[bundle]


def write_truth(folder: Path, bundle: Sha256, truth: Truth) -> None:
    """Write what is known of `bundle`; readers see all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    np.savez(raw, allow_pickle=False, right=truth.right, latency_ms=np.float64(truth.latency_ms))
    path = _path(folder, bundle)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(raw.getvalue())
    os.replace(temporary, path)


def _path(folder: Path, bundle: Sha256) -> Path:
    return folder / f"{bundle}.npz"
