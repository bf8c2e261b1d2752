"""Prints the JSON Schema: `python -m muster_controller.policy_document > docs/protocol/policy.schema.json`."""

import json

from muster_controller.policy_document.schema import schema

if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
