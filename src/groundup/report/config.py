"""What the machine costs, for the report."""

from typing import Annotated

from pydantic import Field

from groundup.core.config import LARGEST, PositiveFloat, Section


class ReportConfig(Section):
    watts: PositiveFloat = 30.0  # drawn by the machine while it works
    price_per_hour: Annotated[float, Field(ge=0, le=LARGEST)] = 0.10  # of a machine like this one, rented, in dollars
    grams_co2_per_kwh: Annotated[float, Field(ge=0, le=LARGEST)] = 400.0
