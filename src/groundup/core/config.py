"""What every chapter's config class is made of: strict, frozen, with bounds that say why."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
MOST = 10**15  # of anything counted: Llama 3's 15.6T tokens are the largest corpus told of, 64 times less
LARGEST = 1e15
Positive = Annotated[int, Field(gt=0, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate beyond it ends in numbers that are not finite
Batch = Annotated[int, Field(gt=0, le=10**6)]  # conversations or pairs that are padded into one tensor
Epochs = Annotated[int, Field(gt=0, le=1000)]  # pairs and answers are known by heart after ten
ContextLength = Annotated[int, Field(ge=16, le=2**20)]  # the positions of every token of a row are in memory at once
SeedNumber = Annotated[int, Field(ge=0, lt=2**32)]  # what all of torch's, numpy's and scikit-learn's generators take


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
