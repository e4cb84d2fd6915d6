"""The base class and field types of every chapter's config: strict, frozen, with the reasons for the bounds."""

import difflib
from collections.abc import Collection, Mapping
from numbers import Number
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groundup.core.errors import UserError
from groundup.core.text import shown

Share = Annotated[float, Field(ge=0, le=1)]
MOST = 10**15  # of anything counted: the largest published corpus, Llama 3's 15.6T tokens, is 64 times smaller
LARGEST = 1e15
Positive = Annotated[int, Field(gt=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
LearningRate = Annotated[float, Field(gt=0, le=10)]  # a learning rate beyond it ends in numbers that are not finite
Batch = Annotated[int, Field(gt=0, le=10**6)]  # conversations or pairs that are padded into one tensor
Epochs = Annotated[int, Field(gt=0, le=1000)]  # pairs and answers are memorised after ten
ContextLength = Annotated[int, Field(ge=16, le=2**20)]  # the positions of every token of a row are in memory at once
# Of the weights on disk; in memory and for the optimizer they are float32. "": as in the folder that training started from,
# float32 for a new model. bfloat16 is half the size, with 8 bits of mantissa instead of 24.
SaveDtype = Literal["", "float32", "bfloat16"]
SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]  # what all of torch's, numpy's and scikit-learn's generators take


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


SectionType = TypeVar("SectionType", bound=Section)


def python_number(value: Any) -> Any:
    """A NumPy number, as `numpy.arange` gives them, as Python's; anything else as it is."""
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def configured(
    kind: type[SectionType], settings: Mapping[str, Any], where: str, without: Collection[str] = ()
) -> SectionType:
    """The settings as an object of their class. Raises UserError, which begins with `where`, for the first that is wrong.

    `without`: names that would have no effect there; they are refused as unknown.
    """
    known = [name for name in kind.model_fields if name not in without]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"{where}: no setting {str(name)[:40]!r}; {hint}")
    try:
        return kind.model_validate({name: python_number(value) for name, value in settings.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":  # from one of our own checks, whose message is complete
            raise UserError(f"{where}: {name[:80]}{': ' if name else ''}{first['ctx']['error']}") from None
        raise UserError(f"{where}: {name[:80]} = {shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
