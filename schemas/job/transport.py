"""The transport of a spec: by which method each neuron's source law is carried to its target law, and where."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from schemas.job.section import Number, Section


def _percentiles_in_order(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] < pair[1] <= 100:
        raise ValueError("0 <= p_lo < p_hi <= 100")
    return pair


Support = Annotated[
    Literal["observed", "tokens", "unbounded"]
    | Annotated[tuple[Number, Number], AfterValidator(_percentiles_in_order)],
    Field(description="observed, tokens, unbounded or [p_lo, p_hi] with 0 <= p_lo < p_hi <= 100"),
]

# One neuron and all neurons would both be called 1, so a share ends below it: all of them is no selection.
Top = Annotated[
    Annotated[int, Field(strict=True, ge=1)] | Annotated[Number, Field(gt=0, lt=1)],
    Field(description="a whole number, at least 1, or a share between 0 and 1, such as 0.1"),
]


@final
class Selection(Section):
    """The neurons that are moved: those whose laws differ most. The others stay.

    Args:
        by: What ranks them: the distance W2 between the two laws, or how well they are told apart (AUROC).
        top: How many are moved, a whole number; or which share of them, a fraction.
        of: What is ranked: neurons, or whole sites.
        across: Whether each site ranks its own neurons, or the model ranks them all. Sites are ranked by the model.
    """

    by: Literal["w2", "auroc"]
    top: Top
    of: Literal["neurons", "sites"] = "neurons"
    across: Literal["site", "model"] = "site"

    @model_validator(mode="before")
    @classmethod
    def _sites_are_across_the_model(cls, value: object) -> object:
        return {"across": "model", **value} if isinstance(value, Mapping) and value.get("of") == "sites" else value

    @field_validator("across")
    @classmethod
    def _ranks_sites_in_the_model(cls, across: str, info: ValidationInfo) -> str:
        if across == "site" and info.data.get("of") == "sites":
            raise ValueError("model with 'of: sites', which are ranked against each other")
        return across


# These are maps between laws, known where the source law is. The others have no support on values in Table 1.
_ON_SUPPORT = ("mean", "gaussian", "linear", "quantile")


def _support(read: Mapping[str, Any]) -> Literal["observed", "unbounded"]:
    return "observed" if read.get("method") in _ON_SUPPORT else "unbounded"


@final
class Transport(Section):
    """A method without settings of its own.

    Args:
        method: A method of Table 1 (Rodriguez et al., ICLR 2025), or ``quantile``, the full monotone map.
        support: The values that are moved; the default is the method's.
        select: The neurons that are moved; None moves all.
    """

    method: Literal["actadd", "caa", "aura", "east", "iti-mean", "iti-probe", "mean", "gaussian", "linear", "quantile"]
    support: Support = Field(default_factory=_support)
    select: Selection | None = None


@final
class DetZero(Section):
    """Det-zero: neurons that detect the source with an average precision above `threshold` are set to zero."""

    method: Literal["det-zero"]
    support: Support = "unbounded"
    select: Selection | None = None
    threshold: Annotated[Number, Field(ge=0, lt=1, description="a number, at least 0 and below 1")] = 0.5
