"""Throughput and demand of a replica in the one unit of a model: requests a second, or tokens a second.

Tokens are generated tokens; for an embedding model those of the prompts.
"""

from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.value import LARGEST_FIGURE, WrittenValue

Unit = Literal["requests/s", "tokens/s"]

REQUESTS: Unit = "requests/s"
TOKENS: Unit = "tokens/s"

FIELDS = {REQUESTS: "qps", TOKENS: "tokensPerSecond"}
"""Unit -> the field in a manifest."""


class Throughput(WrittenValue):
    """A figure in one of the two units. In a document it stands last, and what is not given is left out."""

    qps: float | None = Field(default=None, ge=0, le=LARGEST_FIGURE)
    tokens_per_second: float | None = Field(default=None, ge=0, le=LARGEST_FIGURE)

    @model_validator(mode="after")
    def _in_one_unit(self) -> Self:
        if self.qps is not None and self.tokens_per_second is not None:
            given = f"qps {self.qps:g} and tokensPerSecond {self.tokens_per_second:g}"
            msg = f"exactly one of qps and tokensPerSecond may stand here, got {given}"
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        given = {key: value for key, value in plain.items() if value is not None}
        return dict(sorted(given.items(), key=lambda item: item[0] in {*FIELDS.values(), "tokens_per_second"}))

    @property
    def unit(self) -> Unit | None:
        """The unit of the figure; None if there is no figure."""
        if self.tokens_per_second is not None:
            return TOKENS
        return None if self.qps is None else REQUESTS

    @property
    def rate(self) -> float | None:
        """The figure, in its unit."""
        return self.qps if self.tokens_per_second is None else self.tokens_per_second


def unit_in(model: str, tokens: Collection[str]) -> Unit:
    """Return the unit of a model. `tokens`: the models whose demand is in tokens a second."""
    return TOKENS if model in tokens else REQUESTS


def in_unit(text: str, unit: Unit) -> str:
    """Return a text of the planner, which uses QPS for every model, in the model's unit."""
    return text.replace("QPS", unit) if unit == TOKENS else text


def amount(figure: float, unit: Unit) -> str:
    """Return a figure with its unit: `4000 tokens/s`."""
    return f"{figure:g} {unit}"
