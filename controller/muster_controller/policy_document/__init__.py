"""The policy as a document: YAML or JSON in, values out, and its JSON Schema. What it may not say is `core.policy`'s.

Nothing of a rollout, and no files: callers bring bytes and the name that messages show.
"""

from muster_controller.policy_document.reading import parse_policy
from muster_controller.policy_document.schema import schema
from muster_controller.policy_document.writing import dump, written

__all__ = ["dump", "parse_policy", "schema", "written"]
