"""The port to an inference engine: a file becomes a session, a session turns arrays into arrays.

    MusterError
    └── EngineError
        ├── EngineMissing      the runtime is not installed here: take another variant
        ├── ModelUnloadable    the file, or what it declares, does not fit: the release is broken for this engine
        ├── InputRefused       the caller's array does not fit the manifest: the caller is wrong, the release is not
        └── InferenceFailed    the engine itself failed: counts against the release

It promises nothing about speed and holds no queue: `serving.rooms` decides who runs when.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from muster_shared.bundle import Runtime, TensorSpec, Variant
from muster_shared.errors import MusterError

Array = npt.NDArray[np.generic]
"""A tensor. BYTES is an object array of `bytes`."""


class EngineError(MusterError):
    """Anything that an engine refuses or cannot do."""


class EngineMissing(EngineError):
    """The runtime that a variant names is not installed on this device."""

    def __init__(self, engine: Runtime, reason: str) -> None:
        super().__init__(
            f"{engine} cannot be used here ({reason}); install muster-agent[{engine}] or choose another variant"
        )
        self.engine = engine
        self.reason = reason


class ModelUnloadable(EngineError):
    """The engine cannot load the file, or the model in it is not the one that the manifest describes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model does not load: {reason}; publish a corrected release")
        self.reason = reason


def without_folder(text: str, folder: Path) -> str:
    """Return `text` with the paths in `folder` relative to it: where a device keeps its files is told nobody."""
    for name in dict.fromkeys((str(folder), str(folder.resolve()))):
        text = text.replace(f"{name}/", "").replace(name, ".")
    return text


class InputRefused(EngineError):
    """An input that does not fit the manifest; nothing was run."""

    def __init__(self, tensor: str, reason: str) -> None:
        super().__init__(f"input {tensor!r} {reason}")
        self.tensor = tensor
        self.reason = reason


class InferenceFailed(EngineError):
    """The engine failed on inputs that fit the manifest, or the session is closed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"inference failed: {reason}; if it repeats, roll the release back")
        self.reason = reason


class Achieved(msgspec.Struct, frozen=True, kw_only=True):
    """What a session really runs on, as the engine says after loading; never merely what was asked for."""

    engine: Runtime
    version: str
    device: str
    precision: str
    """fp32, fp16, int8; another word, such as bf16 or int8/bf16, when the engine computes in something else."""
    threads: int
    fallback: str = ""
    """Why this is not what the variant asked for; empty when it is."""


class Session(Protocol):
    """One loaded model.

    `run` and `run_arrays` may be called from several threads; what exceeds `concurrency` takes turns inside.
    """

    @property
    def achieved(self) -> Achieved: ...

    @property
    def concurrency(self) -> int:
        """How many calls may proceed truly at once, >= 1."""
        ...

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        """Return every output, for a caller who has checked the inputs: the way of every served request.

        Args:
            arrays: One of each input in the manifest's order, of its data type and shape, row-major and aligned; they
                may be read-only, and must not change before the call returns. Nothing of this is checked again.
        Returns:
            The outputs in the manifest's order; the arrays belong to the caller.
        Raises:
            InputRefused: a BYTES tensor holds what the engine cannot take.
            InferenceFailed: the engine failed, or the session is closed.
        """
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output that the manifest names, in its order; the arrays belong to the caller.

        Raises:
            InputRefused: a name, data type or shape does not fit the manifest.
            InferenceFailed: the engine failed, or the session is closed.
        """
        ...

    def close(self) -> None:
        """Free the model. Calls under way finish first; later ones fail; closing twice is harmless."""
        ...


class Engine(Protocol):
    """One inference runtime."""

    @property
    def name(self) -> Runtime: ...

    def load(
        self,
        model_file: Path,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int,
        cache_dir: Path,
        instances: int = 1,
    ) -> Session:
        """Return a session on `model_file`.

        Args:
            model_file: The variant's first file under its manifest path: engines read meaning into the ending (`.onnx`,
                `.ort`, `.xml`), and a model may name its weights beside it.
            threads: At most this many for one inference, >= 1.
            cache_dir: A folder of this release's digest alone, which the engine may fill; sharing one between releases
                would serve the old model (OpenVINO compares path, size and time, never content).
            instances: Calls that are to proceed at once, >= 1; the session's `concurrency` is at least that.
        Raises:
            ModelUnloadable: the file is damaged, or is not the model that the manifest describes.
        """
        ...
