"""Energy, dollars and carbon of a machine at work: one rule for training and evaluation."""


def cost(seconds: float, watts: float, price_per_hour: float, grams_co2_per_kwh: float) -> dict[str, float]:
    """{"kwh", "dollars", "grams_co2e"} of a machine that draws `watts` (all of it, cooling included) for `seconds`."""
    hours = seconds / 3600
    kwh = hours * watts / 1000
    return {"kwh": kwh, "dollars": hours * price_per_hour, "grams_co2e": kwh * grams_co2_per_kwh}
