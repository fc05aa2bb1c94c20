"""Limits on a ranking that is judged on replayed requests: of a step of a pipeline, and of a new generation."""

from typing import Annotated, Any, Final, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.value import LARGEST_FIGURE, Name, WrittenValue

MOST_TOP_K: Final = 10_000

Drop = Annotated[float, Field(ge=0, le=LARGEST_FIGURE)]
Share = Annotated[float, Field(ge=0, le=1)]


class RankingLimits(WrittenValue):
    """What may change on the same requests. A limit that is left out is not judged."""

    part: Name | None = None
    output: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """The output that is ranked; left out: the labelled one, else the first with one number a row."""
    top_k: int = Field(default=10, ge=1, le=MOST_TOP_K)
    """Rows that the overlap of rankings looks at."""
    max_auc_drop: Drop | None = None
    max_log_loss_rise: Drop | None = None
    max_entropy_rise: Drop | None = None
    """Of the normalized entropy: log-loss over that of the constant mean label (He et al., ADKDD 2014)."""
    min_top_k_overlap: Share | None = None
    max_latency_ratio: Drop | None = None
    """Median time of a pass over the former's, the larger one of two batch sizes."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out absent fields."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if value is not None}


class ReplaySpec(RankingLimits):
    """`spec.validation.replay`: limits of a new generation against the serving one, on the new one's replay set.

    `part` is the part that is replayed; left out: every part of engine torch whose snapshot has a replay set.
    """

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if all(getattr(self, name) is None for name in _LIMITS):
            written = ", ".join(type(self).model_fields[name].alias or name for name in _LIMITS)
            msg = f"at least one limit has to be given; allowed: {written}"
            raise ValueError(msg)
        return self


_LIMITS: Final = ("max_auc_drop", "max_log_loss_rise", "max_entropy_rise", "min_top_k_overlap", "max_latency_ratio")
