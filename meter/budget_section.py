"""What requests may take in a span of time: the sections `[budgets.NAME]` of the configuration."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

Window = Literal["hour", "day", "week", "month"]

_Arm = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class BudgetSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    arms: frozenset[_Arm] = Field(default=frozenset(), description="Requests of these arms draw on it.")
    api_key_sha256: frozenset[_Sha256] = Field(
        default=frozenset(),
        description='So do requests with one of these API keys (`Authorization: Bearer` or `X-Api-Key`): the keys of a team, or one. `printf %s "$KEY" | sha256sum`.',
    )
    joules: float | None = Field(
        default=None, gt=0.0, allow_inf_nan=False, description="What they may take in one window; this, or `wh`."
    )
    wh: float | None = Field(default=None, gt=0.0, allow_inf_nan=False, description="The same in watt hours.")
    window: Window = Field(
        default="day",
        description="`hour`, `day`, `week` (from Monday) or `month`, of the calendar and in UTC. What is left does not pass to the next one.",
    )

    @model_validator(mode="after")
    def _says_who_and_how_much(self) -> Self:
        if not self.arms and not self.api_key_sha256:
            raise PydanticCustomError("budget", "Input should name arms or api_key_sha256")
        if (self.joules is None) == (self.wh is None):
            raise PydanticCustomError("budget", "Input should have joules or wh, and not both")
        return self

    @property
    def limit_j(self) -> float:
        """Joules in one window."""
        return self.joules if self.joules is not None else (self.wh or 0.0) * 3600.0
