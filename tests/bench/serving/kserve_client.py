"""`python kserve_client.py URL MODEL`: whether KServe's own REST client understands a V2 endpoint, and is understood.

A script for an environment of its own (`pip install kserve`, which brings a web server and a Kubernetes client): it
imports nothing of ours. It asks in binary and in JSON what must be answered alike, prints one JSON object, and ends
with 1 when something is wrong. It measures nothing.
"""

import asyncio
import json
import sys
import urllib.request
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

ROWS = 2
TIMEOUT_S = 30.0
DTYPES = {"BOOL": "?", "BYTES": "O", **{f"INT{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)}}
DTYPES |= {f"UINT{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)} | {
    f"FP{bits}": f"f{bits // 8}" for bits in (16, 32, 64)
}


def values(tensor: dict[str, Any]) -> np.ndarray:
    shape = [ROWS if size == -1 else size for size in tensor["shape"]]
    count = np.arange(np.prod(shape)) % 2  # Fits every number type, and what a model takes for a class or a byte.
    if tensor["datatype"] == "BYTES":
        return np.array([b"%d" % one for one in count] + [None], object)[:-1].reshape(shape)
    return count.astype(DTYPES[tensor["datatype"]]).reshape(shape)


def request(model: str, metadata: dict[str, Any], *, binary: bool) -> InferRequest:
    inputs = []
    for tensor in metadata["inputs"]:
        array = values(tensor)
        inputs.append(InferInput(tensor["name"], list(array.shape), tensor["datatype"]))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput(tensor["name"], {"binary_data": binary}) for tensor in metadata["outputs"]]
    return InferRequest(model, inputs, request_id=f"kserve-{binary}", request_outputs=outputs)


async def check(url: str, model: str, metadata: dict[str, Any]) -> dict[str, bool]:
    """Return what holds."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=TIMEOUT_S))
    found = {
        "live": await client.is_server_live(url) is True,
        "ready": await client.is_server_ready(url) is True,
        "model_ready": await client.is_model_ready(url, model) is True,
    }
    answers = []
    for binary in (True, False):
        response = await client.infer(url, request(model, metadata, binary=binary), model_name=model)
        found[f"id_{'binary' if binary else 'json'}"] = response.id == f"kserve-{binary}"
        answers.append({output.name: output.as_numpy() for output in response.outputs})
    binary, plain = answers
    found["outputs"] = sorted(binary) == sorted(plain) == sorted(tensor["name"] for tensor in metadata["outputs"])
    # JSON has every digit of a float, but not its width.
    found["alike"] = all(np.array_equal(binary[name], plain[name].astype(binary[name].dtype)) for name in binary)
    await client.close()
    return found


def main() -> int:
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    with urllib.request.urlopen(f"{url}/v2/models/{model}", timeout=TIMEOUT_S) as answer:
        metadata = json.load(answer)
    found = asyncio.run(check(url, model, metadata))
    print(json.dumps(found))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
