"""`muster-agent infer`: one inference on tensors from a file or the command line."""

import argparse
from pathlib import Path
from typing import Any

from muster_agent.cli.asking import ask, endpoint_of, token
from muster_agent.cli.exits import USAGE, CommandFailed


def infer(options: argparse.Namespace) -> None:
    import json

    endpoint = endpoint_of(options)
    if options.json is not None:
        request = _request_of(options.json, "--json")
    elif options.input.suffix in (".npy", ".npz"):
        specs = ask(endpoint, "GET", f"/v2/models/{options.model}", token=token())["inputs"]
        request = {"inputs": _tensors(options.input, specs)}
    else:
        try:
            request = _request_of(options.input.read_text(encoding="utf-8"), str(options.input))
        except (OSError, UnicodeDecodeError) as error:
            raise CommandFailed(USAGE, f"{options.input} cannot be read: {error}") from error
    answer = ask(endpoint, "POST", f"/v2/models/{options.model}/infer", json.dumps(request).encode(), token=token())
    print(json.dumps(answer, indent=2))


def _request_of(text: str, where: str) -> dict[str, Any]:
    import json

    try:
        request = json.loads(text)
    except ValueError as error:
        raise CommandFailed(USAGE, f"{where} is not JSON: {error}") from error
    if isinstance(request, list):
        return {"inputs": request}
    if isinstance(request, dict) and isinstance(request.get("inputs"), list):
        return request
    raise CommandFailed(
        USAGE, f'{where} is no V2 request; write {{"inputs": [{{"name", "shape", "datatype", "data"}}]}}'
    )


def _tensors(path: Path, specs: Any) -> list[dict[str, Any]]:
    """Return the arrays in `path` as V2 tensors of the data types that the model takes."""
    import numpy as np

    from muster_agent.engines.tensors import DTYPES

    try:
        loaded = np.load(path, allow_pickle=False)
        given = {specs[0]["name"]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except (OSError, ValueError, EOFError) as error:
        raise CommandFailed(USAGE, f"{path} cannot be read: {error}") from error
    tensors: list[dict[str, Any]] = []
    for spec in specs:
        array = given.get(spec["name"])
        if array is None:
            raise CommandFailed(USAGE, f"{path} has no array {spec['name']!r}; it has {', '.join(sorted(given))}")
        dtype = DTYPES[spec["datatype"]]
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise CommandFailed(USAGE, f"{path}: {spec['name']} is {array.dtype}; the model takes {spec['datatype']}")
        tensors.append(
            {
                "name": spec["name"],
                "shape": list(array.shape),
                "datatype": spec["datatype"],
                "data": array.astype(dtype).ravel().tolist(),
            }
        )
    return tensors
