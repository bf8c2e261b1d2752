"""What the demo's applications ask, in every form in which it could travel; base64 is for the scan to unpack."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from muster_shared.bundle import parse_manifest
from muster_simulator.workloads import catalogue

PART = 4096
"""Of a file, the first and the last so many bytes: a client of magika looks at no more."""


def forms_of_inputs(bundles: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each form of each input, with a name for it.

    Args:
        bundles: `<model>/<version>/bundle.json`: what each release takes.
    """
    for path in sorted(bundles.glob("*/*/bundle.json")):
        manifest = parse_manifest(path.read_bytes())
        inputs = catalogue.inputs(manifest.model)
        for number, content in enumerate(inputs.contents):
            name = f"input {number} of {manifest.model}"
            for part in (content[:PART], content[-PART:]):
                yield f"{name}, as it is", part
                yield f"{name}, in hex", part.hex().encode()
                yield f"{name}, as JSON", json.dumps(part.decode("latin-1")).encode()
                yield f"{name}, as JSON", json.dumps(part.decode(errors="replace"), ensure_ascii=False).encode()
            tensor = inputs.encode(manifest.inputs[0], content)
            for code in ("<f4", "<f8", "<i4", "<i8", "u1"):
                raw = tensor.astype(code).tobytes()
                yield f"{name}, a tensor of {code}", raw
                yield f"{name}, a tensor of {code} in hex", raw.hex().encode()
            for numbers in (tensor.ravel().tolist(), np.rint(tensor.ravel()).astype(int).tolist()):
                yield f"{name}, in numbers", json.dumps(numbers).encode()
                yield f"{name}, in numbers", json.dumps(numbers, separators=(",", ":")).encode()
