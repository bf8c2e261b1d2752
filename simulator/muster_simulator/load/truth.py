"""What each release really answers right: one small file a bundle, written once from real inference.

`<folder>/<bundle sha256>.npz` holds `right`, bool [labelled inputs], `latency_ms`, the median of one inference, and
what was answered. A device that only pretends to serve draws its answers from it, so that its accuracy is the release's
own, and so are the anonymous metrics that it sends.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muster_shared.ids import Sha256
from muster_simulator.workloads.answers import Answers


@dataclass(frozen=True, eq=False)
class Truth:
    """`right`: bool [labelled inputs], in the workload's order."""

    right: NDArray[np.bool_]
    latency_ms: float
    answered: Answers | None = None
    """None: only who was right is known, and nothing can be measured of it but that."""


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
                answered = None
                if "answered" in arrays:
                    rows = arrays["answered"], arrays["truth"], arrays["confidence"]
                    answered = Answers(*rows, int(arrays["classes"]))
                self._known[bundle] = Truth(arrays["right"], float(arrays["latency_ms"]), answered)
        return self._known[bundle]


def write_truth(folder: Path, bundle: Sha256, truth: Truth) -> None:
    """Write what is known of `bundle`; readers see all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {"right": truth.right, "latency_ms": np.array(truth.latency_ms)}
    if truth.answered is not None:
        said = truth.answered
        arrays |= {"answered": said.answered, "truth": said.truth, "confidence": said.confidence}
        arrays["classes"] = np.array(said.classes)
    np.savez(raw, allow_pickle=False, **arrays)
    path = _path(folder, bundle)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(raw.getvalue())
    os.replace(temporary, path)


def _path(folder: Path, bundle: Sha256) -> Path:
    return folder / f"{bundle}.npz"
