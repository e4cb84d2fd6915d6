"""The largest openly described run, beside which others see what theirs cost (`core.cost`)."""

from typing import Any

# The largest openly described run, as the lecture sums it up (sources: Llama 3's report, 2024; rental at $2 an hour).
LLAMA3_405B: dict[str, Any] = {
    "parameters": 405e9,
    "tokens": 15.6e12,
    "flop": 3.8e25,
    "gpus": 16_000,
    "days": 70,
    "gpu_hours": 26e6,  # of H100, "about"
    "gpu_watts": 700,
    "price_per_gpu_hour": 2.0,
    "compute_dollars": 52e6,
    "staff": 50,
    "dollars_per_employee": 500_000,
    "staff_dollars": 25e6,
    "tonnes_co2e": 4_000,
}

# Training FLOP from which a law asks for more. The US order was signed in 2023 and rescinded in January 2025; the EU act
# presumes systemic risk, and the Commission's guidelines of July 2025 say what is general-purpose at all; California's act is of
# September 2025. Llama 3 405B stays below the first and the last, and is above the others.
THRESHOLDS_FLOP = {
    "US Executive Order 14110": 1e26,
    "EU AI Act, Article 51": 1e25,
    "EU guidelines on general-purpose models": 1e23,
    "California SB 53": 1e26,
}
