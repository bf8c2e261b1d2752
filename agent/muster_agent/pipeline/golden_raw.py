"""The raw golden cases: files as clients send them, with what must be predicted, through the pipeline and the model.

They prove what the golden tensors cannot: that decoding, tokenising and naming on this device are those of the
publisher. `golden_raw` of a pipeline is a ZIP file with `cases.json` beside the raw files:

    {"cases": [{"file": "seven.png", "content_type": "image/png", "expect": {"label": "7", "score": 0.9}, "atol": 0.1}]}

`expect` may name any part of the predictions; numbers may differ by `atol`, all else must be equal. Several cases may
name one file.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from muster_agent.engines.port import Array, EngineError
from muster_agent.pipeline.pipeline import LoadedPipeline
from muster_agent.pipeline.value import PipelineError, PipelineUnloadable

INDEX = "cases.json"
CASES_MAX = 256
CASES_BYTES_MAX = 64 * 1024 * 1024  # Unpacked.

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""The model: `engines.port.Session.run`."""


class _Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str
    content_type: str
    expect: dict[str, object]
    atol: float = 1e-3


class _Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cases: tuple[_Case, ...]


def prove_raw(pipeline: LoadedPipeline, run: Run, file: Path) -> str:
    """Return why the raw cases in `file` do not hold, or an empty string when all do.

    Raises:
        PipelineUnloadable: the file is not what it must be.
    """
    for number, (case, raw) in enumerate(_read(file)):
        try:
            prepared = pipeline.prepare(raw, case.content_type)
            predictions = pipeline.finish(run(prepared.arrays), prepared.context)
        except (PipelineError, EngineError) as error:
            return f"raw case {number} ({case.file}): {error}"
        problem = differs(case.expect, predictions, case.atol)
        if problem:
            return f"raw case {number} ({case.file}): {problem}"
    return ""


def differs(expected: object, actual: object, atol: float, at: str = "predictions") -> str:
    """Return how `actual` differs from `expected`, or an empty string. Objects may have more than is expected."""
    match expected, actual:
        case dict(), dict():
            for key, value in expected.items():
                if key not in actual:
                    return f"{at} has no {key}"
                problem = differs(value, actual[key], atol, f"{at}.{key}")
                if problem:
                    return problem
            return ""
        case list(), list():
            if len(expected) != len(actual):
                return f"{at} has {len(actual)} elements, not {len(expected)}"
            pairs = enumerate(zip(expected, actual, strict=True))
            return next(filter(None, (differs(a, b, atol, f"{at}[{index}]") for index, (a, b) in pairs)), "")
        case ((bool() | str() | None), _):
            return (
                "" if type(expected) is type(actual) and expected == actual else f"{at} is {actual!r}, not {expected!r}"
            )
        case ((int() | float()), (int() | float())):
            return "" if abs(expected - actual) <= atol else f"{at} is {actual}, not {expected} within {atol}"
        case _:
            return f"{at} is {actual!r}, not {expected!r}"


def _read(file: Path) -> list[tuple[_Case, bytes]]:
    """Return the cases with their raw bytes. Raises PipelineUnloadable."""
    try:
        with zipfile.ZipFile(file) as archive:
            # A member cannot unpack to more than its directory says: zipfile reads no further.
            total = sum(member.file_size for member in archive.infolist())
            if total > CASES_BYTES_MAX:
                raise PipelineUnloadable(f"{file.name} unpacks to {total} bytes; the limit is {CASES_BYTES_MAX}")
            index = msgspec.json.decode(archive.read(INDEX), type=_Index)
            if not 1 <= len(index.cases) <= CASES_MAX:
                raise PipelineUnloadable(f"{file.name} has {len(index.cases)} cases; there must be 1 to {CASES_MAX}")
            return [(case, archive.read(case.file)) for case in index.cases]
    except PipelineUnloadable:
        raise
    except Exception as error:  # zipfile, zlib and msgspec share no tree; whatever it is, the file is not usable.
        raise PipelineUnloadable(f"{file.name}: {type(error).__name__}: {error}") from error
