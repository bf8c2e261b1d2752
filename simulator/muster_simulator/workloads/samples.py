"""Files of known type, for magika: found in the packages that the lock pins, or written from those by standard tools.

The truth is the file's name, confirmed by its content where a format can be confirmed; a model is never asked. The
same lock on the same platform and Python gives the same sample.
"""

import ast
import bz2
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import marshal
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import PurePosixPath

from pygments import highlight  # type: ignore[import-untyped]  # It ships no type information.
from pygments.formatters import HtmlFormatter, SvgFormatter  # type: ignore[import-untyped]  # As above.
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]  # As above.

# Runtime dependencies that ship more than code; a fixed list, so that other packages do not change the sample.
PACKAGES = (
    "alembic", "certifi", "cryptography", "fastapi", "joblib", "numpy", "onnx", "onnxruntime", "openvino", "pygments",
    "scikit-learn", "scipy", "securesystemslib", "sqlalchemy", "structlog", "tuf", "urllib3",
)  # fmt: skip
BYTES_MIN, BYTES_MAX = 256, 1024 * 1024  # Below are stubs of test suites, near copies of each other.
COMMON = 12  # About a twentieth of the sample.
RARE = 3  # Of each type that only magika 1.x knows: a tenth of the sample, which 0.5 cannot get right.
GOLDEN_EACH = 1


@dataclass(frozen=True)
class Sample:
    """A file: what it is called, its content, and the label that is right."""

    name: str
    content: bytes
    truth: str


@dataclass(frozen=True)
class Kind:
    """A type to be found by the end of the file name, or by its beginning when `stems` are given."""

    truth: str
    endings: tuple[str, ...]
    most: int
    confirms: Callable[[bytes], bool] = lambda content: True
    stems: tuple[str, ...] = ()


@cache
def draw() -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the labelled samples, mixed, and one more of most types for golden cases."""
    samples: list[Sample] = []
    golden: list[Sample] = []
    files = _files()
    found = ((kind.most, _found(kind, files)) for kind in _KINDS)
    for most, candidates in (*found, *_written(files)):
        drawn = list(islice(candidates, most + GOLDEN_EACH))
        samples += drawn[:most]
        golden += drawn[most:]
    return tuple(sorted(samples, key=_rank)), tuple(sorted(golden, key=_rank))


def _begins(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(magics)


def _is_python(content: bytes) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            return len(ast.parse(content).body) > 1
    except (SyntaxError, ValueError):
        return False


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _is_markdown(content: bytes) -> bool:
    return content.startswith(b"# ") or b"\n## " in content


def _is_wave(content: bytes) -> bool:
    return content[:4] == b"RIFF" and content[8:16] == b"WAVEfmt "


_KINDS = (
    Kind("python", (".py",), COMMON, _is_python),
    Kind("c", (".c",), COMMON),
    Kind("elf", (".so",), COMMON, _begins(b"\x7fELF")),
    Kind("json", (".json",), COMMON, _is_json),
    Kind("markdown", (".md",), COMMON, _is_markdown),
    Kind("rst", (".rst",), COMMON),
    Kind("txt", ("", ".txt"), COMMON, stems=("LICENSE", "LICENCE", "COPYING", "NOTICE")),
    Kind("csv", (".csv",), COMMON),
    Kind("gzip", (".gz", ".gzip"), COMMON, _begins(b"\x1f\x8b")),
    Kind("wav", (".wav",), COMMON // 2, _is_wave),
    Kind("bzip", (".bz2",), COMMON, _begins(b"BZh")),
    Kind("xz", (".xz",), COMMON, _begins(b"\xfd7zXZ\0")),
    Kind("ini", (".ini",), COMMON),
    Kind("css", (".css",), COMMON),
    Kind("javascript", (".js",), COMMON),
    Kind("jpeg", (".jpg",), COMMON, _begins(b"\xff\xd8\xff")),
    Kind("png", (".png",), COMMON, _begins(b"\x89PNG")),
    Kind("pem", (".pem",), COMMON, _begins(b"-----BEGIN ", b"\n#")),
    Kind("shell", (".sh",), COMMON, _begins(b"#!")),
    Kind("cpp", (".cc", ".cpp", ".hpp"), RARE),
    Kind("fortran", (".f90",), RARE),
    Kind("cmake", (".cmake",), RARE),
    Kind("npy", (".npy",), RARE, _begins(b"\x93NUMPY")),
    Kind("npz", (".npz",), RARE, _begins(b"PK\x03\x04")),
    Kind("onnx", (".onnx",), RARE),
    Kind("pickle", (".pkl",), RARE, _begins(b"\x80")),
    Kind("proto", (".proto",), RARE),
)


def _files() -> list[importlib.metadata.PackagePath]:
    """Return every file of PACKAGES, in an order that is mixed and always the same."""
    files = (file for package in PACKAGES for file in importlib.metadata.distribution(package).files or ())
    return sorted(files, key=lambda file: hashlib.sha256(file.as_posix().encode()).digest())


def _found(kind: Kind, files: Iterable[importlib.metadata.PackagePath]) -> Iterator[Sample]:
    seen = set()
    for file in files:
        if file.suffix.lower() not in kind.endings or not file.name.startswith(kind.stems or ("",)):
            continue
        content = _read(file)
        if content is not None and content not in seen and kind.confirms(content):
            seen.add(content)
            yield Sample(file.as_posix(), content, kind.truth)


def _read(file: importlib.metadata.PackagePath) -> bytes | None:
    try:
        with open(file.locate(), "rb") as stream:
            content = stream.read(BYTES_MAX + 1)
    except FileNotFoundError:  # Slim images drop what the package lists, tests above all.
        return None
    return content if BYTES_MIN <= len(content) <= BYTES_MAX else None


def _written(files: Iterable[importlib.metadata.PackagePath]) -> tuple[tuple[int, Iterator[Sample]], ...]:
    """Return formats that the packages do not hold, written from their Python files by the tools that define them."""
    sources = list(islice(_found(Kind("python", (".py",), 0, _is_python), files), 50))
    # Archives of 1 to 5 files each; the others take a source each.
    groups = [sources[start : start + 1 + start % 5] for start in range(len(sources) - 5)]
    return (
        (COMMON, _each("zip", groups, lambda group: _zip(group, zipfile.ZIP_DEFLATED))),
        (COMMON // 2, _each("zip", groups[::-1], lambda group: _zip(group, zipfile.ZIP_STORED))),
        (COMMON, _each("tar", groups, _tar)),
        (COMMON // 2, _each("bzip", groups, lambda group: bz2.compress(group[0].content))),
        (COMMON, _each("pythonbytecode", groups, lambda group: _bytecode(group[0]))),
        (COMMON // 2, _each("html", groups, lambda group: _page(group[0], HtmlFormatter(full=True)))),
        (COMMON // 2, _each("svg", groups, lambda group: _page(group[0], SvgFormatter()))),
    )


def _each(truth: str, groups: list[list[Sample]], write: Callable[[list[Sample]], bytes]) -> Iterator[Sample]:
    return (Sample(f"{group[0].name}.{truth}", write(group), truth) for group in groups)


def _zip(group: list[Sample], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for sample in group:
            archive.writestr(zipfile.ZipInfo(sample.name), sample.content, compression)
    return buffer.getvalue()


def _tar(group: list[Sample]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for sample in group:
            header = tarfile.TarInfo(sample.name)
            header.size = len(sample.content)
            archive.addfile(header, io.BytesIO(sample.content))
    return buffer.getvalue()


def _bytecode(sample: Sample) -> bytes:
    """Return what an interpreter would cache: magic, flags 0, source time 0 and size (PEP 552), then the code."""
    with warnings.catch_warnings(action="ignore"):
        code = compile(sample.content, PurePosixPath(sample.name).name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(8) + len(sample.content).to_bytes(4, "little") + marshal.dumps(code)


def _page(sample: Sample, formatter: HtmlFormatter | SvgFormatter) -> bytes:
    beginning = "\n".join(sample.content.decode().splitlines()[:200])
    page: str = highlight(beginning, PythonLexer(), formatter)
    return page.encode()


def _rank(sample: Sample) -> bytes:
    return hashlib.sha256(sample.name.encode() + sample.content).digest()
