"""What every type of the API has in common: nothing unknown is taken, and nothing changes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Next = Annotated[str | None, Field(description="Give it as `cursor` for the next page; null on the last.")]
Said = Annotated[str, Field(max_length=500, description="Why, for the history and the audit log.")]
