"""What the sections of the Plan have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, and finite numbers only; fields that it does not have are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
