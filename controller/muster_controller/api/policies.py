"""Routes: the schema of a policy, and whether one can be evaluated and satisfied."""

import json
from typing import Any

from fastapi import APIRouter

from muster_controller.api.authentication import require
from muster_controller.api.planning import check
from muster_controller.api.schemas import PolicyChecked, PolicyQuestion
from muster_controller.api.services import Given
from muster_controller.core.policy import Policy, PolicyInvalid
from muster_controller.operators.roles import Permission
from muster_controller.policy_document import parse_policy, schema

router = APIRouter(prefix="/policies", tags=["policies"], dependencies=[require(Permission.VIEW)])


def read_policy(given: dict[str, Any] | str) -> Policy:
    """Return the policy that a request brings, as an object or as a document. Raises PolicyInvalid."""
    return parse_policy(given if isinstance(given, str) else json.dumps(given, indent=2, ensure_ascii=False))


@router.get("/schema")
def policy_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a policy document."""
    return schema()


@router.post("/check")
def check_policy(given: Given, question: PolicyQuestion) -> PolicyChecked:
    """Say whether a policy can be evaluated and, by the present fleet, satisfied. Nothing is kept."""
    try:
        policy = read_policy(question.policy)
    except PolicyInvalid as error:
        return PolicyChecked(
            valid=False,
            message=str(error),
            field=error.field,
            line=error.line,
            written={},
            devices=0,
            classes={},
            warnings=[],
        )
    return check(given.committed(), policy)
