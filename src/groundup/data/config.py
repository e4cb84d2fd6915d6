"""How much of training each domain gets."""

from typing import Annotated

from pydantic import Field

from groundup.core.config import PositiveFloat, Section


class MixtureConfig(Section):
    """How much of training each domain gets."""

    weights: dict[str, PositiveFloat] = {}  # share of training tokens by domain; empty: as found
    # Repeating data beyond 4 epochs gains little (Muennighoff et al. 2023). At most 1,000: each repeat is an entry in memory.
    max_repeats: Annotated[float, Field(gt=0, le=1000)] = 4.0
