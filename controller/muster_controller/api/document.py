"""The API document: OpenAPI, made from the routes so that it cannot say anything else.

`python -m muster_controller.api.document > docs/protocol/openapi.json`; a test compares it with the code.
"""

import json
import sys
from typing import cast

from muster_controller.api.app import create_app
from muster_controller.api.services import Services


def text() -> str:
    # Describing the routes calls none of them, so no services are needed.
    schema = create_app(cast(Services, None)).openapi()
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
