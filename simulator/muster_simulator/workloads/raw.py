"""Raw golden cases: files as clients send them, with the label that the release must give, in one ZIP file.

What the file means is `muster_agent.pipeline.golden_raw`'s; here it is written, byte for byte the same each time.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RAW_FILE = "raw.zip"
RAW_CASES = 4
RAW_BYTES_MAX = 64 * 1024  # Of one case: they travel with every release.
_EPOCH = (1980, 1, 1, 0, 0, 0)  # The first date that ZIP knows.

RawInput = tuple[str, bytes]
"""Content type and content."""


def pack(cases: Sequence[tuple[RawInput, str]]) -> bytes:
    """Return the ZIP file of `cases`: raw inputs with their labels."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        index = []
        for number, ((content_type, content), label) in enumerate(cases):
            name = f"case-{number}"
            _add(archive, name, content)
            index.append({"file": name, "content_type": content_type, "expect": {"label": label}})
        _add(archive, "cases.json", json.dumps({"cases": index}, indent=1).encode())
    return buffer.getvalue()


def grey_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of uint8 [height, width], 0 black, 255 white (PNG, third edition, 11.2)."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # Each row begins with its filter: none.
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
