"""What a training costs: GPU hours, dollars, staff, energy, carbon, and the laws that apply above some compute.

A line is a figure, its unit and what it follows from; every assumption is a line of its own. Llama 3 405B's published figures
are compared with what follows from the first of them; where two published figures do not agree, the sheet says so.
Water is left out: litres per kWh differ tenfold between regions, and nobody published those of a run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundup.core.cost import cost
from groundup.core.errors import UserError
from groundup.core.seals import MANIFEST, read_manifest
from groundup.core.table import table


@dataclass(frozen=True)
class Hardware:
    """flop_per_second: dense, at 16 bits (half of what data sheets print with sparsity). watts: of the board, at most.

    price: dollars an hour of one, rented; round figures that differ by half between sellers and by more over a year.
    """

    name: str
    flop_per_second: float
    watts: float
    price: float
    source: str


HARDWARE = {
    "v100": Hardware("NVIDIA V100 SXM2", 125e12, 300, 0.5, "NVIDIA V100 data sheet, 2020"),
    "a100": Hardware("NVIDIA A100 SXM 80 GB", 312e12, 400, 1.5, "NVIDIA A100 data sheet, 2021"),
    "h100": Hardware("NVIDIA H100 SXM", 989e12, 700, 2.0, "NVIDIA H100 data sheet, 2023"),
    "h200": Hardware("NVIDIA H200 SXM", 989e12, 700, 3.0, "NVIDIA H200 data sheet, 2024"),
    "b200": Hardware("NVIDIA B200 SXM", 2250e12, 1000, 5.0, "NVIDIA Blackwell architecture brief, 2024"),
    "mi300x": Hardware("AMD Instinct MI300X", 1307e12, 750, 2.5, "AMD MI300X data sheet, 2023"),
    "rtx4090": Hardware("NVIDIA GeForce RTX 4090", 165e12, 450, 0.4, "NVIDIA Ada architecture paper, 2022"),
    "tpuv4": Hardware("Google TPU v4", 275e12, 192, 3.2, "Jouppi et al. 2023 (arXiv 2304.01433)"),
}
PRICES = "rental, a round figure of 2024 and 2025; give your own price"
UTILISATION = 0.4  # Llama 3's report has 38 to 43 %
GRID = 400.0  # grams of CO2e a kWh, about the United States' mean of 2022
OVERHEAD = 1.1  # power of the building over that of the machines (PUE); large operators publish 1.1
FLIGHT_TONNES = 2.0  # see `llama3`

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

# Training FLOP from which a law has further duties. The US order was signed in 2023 and rescinded in January 2025; the EU act
# presumes systemic risk, and the Commission's guidelines of July 2025 say what is general-purpose at all; California's act is of
# September 2025. Llama 3 405B stays below the first and the last, and is above the others.
THRESHOLDS_FLOP = {
    "US Executive Order 14110": 1e26,
    "EU AI Act, Article 51": 1e25,
    "EU guidelines on general-purpose models": 1e23,
    "California SB 53": 1e26,
}


@dataclass(frozen=True)
class CostLine:
    what: str
    value: float
    unit: str
    follows: str  # from what


def hardware(gpu: str) -> Hardware:
    """A row of HARDWARE. Raises UserError for an unknown name."""
    if gpu not in HARDWARE:
        raise UserError(f"no hardware {gpu[:40]!r}; there is {', '.join(HARDWARE)}")
    return HARDWARE[gpu]


def bill(
    flop: float,
    gpu: str = "h100",
    gpus: int = 8,
    utilisation: float = UTILISATION,
    price: float | None = None,
    grams: float = GRID,
    overhead: float = OVERHEAD,
    staff: float = 0.0,
    salary: float = 500_000.0,
    years: float = 1.0,
) -> dict[str, Any]:
    """The cost sheet of a training of `flop` operations. Raises UserError for unknown hardware.

    utilisation: share of the peak that the training reaches. grams: of CO2e a kWh. overhead: of the building. staff: people, at
    `salary` dollars a year, for `years`.
    """
    kind = hardware(gpu)
    price = kind.price if price is None else price
    hours = flop / (kind.flop_per_second * utilisation) / 3600
    spent = cost(hours * 3600, kind.watts * overhead, price, grams)
    people, tonnes = staff * salary * years, spent["grams_co2e"] / 1e6
    lines = [
        CostLine("compute", flop, "FLOP", "given"),
        CostLine("GPU hours", hours, "h", f"FLOP / ({kind.flop_per_second / 1e12:g} TFLOP/s x {utilisation:.1%})"),
        CostLine("time", hours / gpus / 24, "days", f"GPU hours / {gpus:,} GPUs, without interruptions"),
        CostLine("rented compute", spent["dollars"], "$", f"GPU hours x ${price:g}"),
        CostLine("staff", people, "$", f"{staff:g} people x ${salary:,.0f} x {years:g} years"),
        CostLine("energy", spent["kwh"], "kWh", f"GPU hours x {kind.watts:g} W x {overhead:g}"),
        CostLine("carbon", tonnes, "t CO2e", f"energy x {grams:g} g a kWh"),
        CostLine("flights", tonnes / FLIGHT_TONNES, "seats", f"carbon / {FLIGHT_TONNES:g} t: New York - London and back"),
    ]  # fmt: skip
    assumptions = [
        CostLine("hardware", kind.flop_per_second / 1e12, "TFLOP/s, dense, 16 bits", f"{kind.name}: {kind.source}"),
        CostLine("utilisation", utilisation, "of the peak", "38 to 43 % in Llama 3's report (2024)"),
        CostLine("power", kind.watts, "W a GPU", f"its limit: {kind.source}"),
        CostLine("overhead", overhead, "times the GPUs' energy", "of the building; processors and network are not counted"),
        CostLine("price", price, "$ a GPU hour", PRICES),
        CostLine("carbon of the grid", grams, "g CO2e a kWh", "of the place; making the hardware is not counted"),
    ]
    return _sheet(lines, assumptions, flop)


def _sheet(lines: list[CostLine], assumptions: list[CostLine], flop: float) -> dict[str, Any]:
    return {
        "lines": [asdict(line) for line in lines],
        "assumptions": [asdict(line) for line in assumptions],
        "thresholds": [
            {"rule": rule, "flop": limit, "share": flop / limit, "above": flop > limit} for rule, limit in THRESHOLDS_FLOP.items()
        ],
        "left_out": ["water", "making the hardware", "failed and small runs before this one", "data and its people"],
    }


def of_run(folder: Path, watts: float, price: float, grams: float) -> dict[str, Any]:
    """The cost sheet of a finished run, from the seconds of its stages, on a machine of `watts` at `price` dollars an hour.

    Raises UserError where no stage is finished.
    """
    manifests = [read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not manifests:
        raise UserError(f"{folder}: no finished stage of a run here; give the FLOP of a run that is planned")
    seconds = sum(float(manifest["seconds"]) for manifest in manifests)
    flop = sum(float(manifest["results"].get("flop") or 0) for manifest in manifests)
    spent = cost(seconds, watts, price, grams)
    lines = [
        CostLine("compute", flop, "FLOP", "counted by the stages that train and say so"),
        CostLine("time", seconds / 3600, "h", f"measured, {len(manifests)} stages"),
        CostLine("machine", spent["dollars"], "$", f"time x ${price:g} an hour"),
        CostLine("energy", spent["kwh"], "kWh", f"time x {watts:g} W"),
        CostLine("carbon", spent["grams_co2e"] / 1e6, "t CO2e", f"energy x {grams:g} g a kWh"),
    ]
    assumptions = [
        CostLine("power", watts, "W, the whole machine", "as given; a laptop at work if not"),
        CostLine("price", price, "$ an hour", "as given"),
        CostLine("carbon of the grid", grams, "g CO2e a kWh", "as given"),
    ]
    return _sheet(lines, assumptions, flop)


def llama3() -> dict[str, Any]:
    """Llama 3 405B line by line: what is published, what follows, and where published figures do not agree.

    Published: Llama 3's report (2024, arXiv 2407.21783), the model card of Llama 3.1 (2024-07-23), and the lecture whose
    estimate LLAMA3_405B holds.
    """
    run = LLAMA3_405B
    # 400 TFLOP/s a GPU is what the lecture reckons with.
    sheet = bill(
        run["flop"], "h100", run["gpus"], 400e12 / HARDWARE["h100"].flop_per_second, run["price_per_gpu_hour"],
        220.0, 1.0, run["staff"], run["dollars_per_employee"],
    )  # fmt: skip
    published_of_line = {
        "compute": run["flop"], "GPU hours": run["gpu_hours"], "time": run["days"], "rented compute": run["compute_dollars"],
        "staff": run["staff_dollars"], "carbon": run["tonnes_co2e"], "flights": 2000,
    }  # fmt: skip
    for line in sheet["lines"]:
        line["published"] = published_of_line.get(line["what"])
    return sheet | {"name": "Llama 3 405B", "checks": _checks(run)}


def _checks(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Published figures against each other: {"what", "one", "other", "ratio", "agree" (within 5 %), "why"}."""
    card_hours, card_tonnes = 30.84e6, 8930
    card_grams = card_tonnes * 1e6 / (card_hours * 0.7)
    rows = [
        ("6 x parameters x tokens, and the reported FLOP", 6 * run["parameters"] * run["tokens"], run["flop"], ""),
        ("GPUs x days, and the GPU hours of the lecture", run["gpus"] * run["days"] * 24, run["gpu_hours"], ""),
        (
            "GPU hours of the model card, and of the lecture", card_hours, run["gpu_hours"],
            "the card counts 30.84M, the lecture reckons with 400 TFLOP/s; the rest may be restarts and later stages of training",
        ),
        (
            "TFLOP/s a GPU from the card's hours, and the report's lowest", run["flop"] / card_hours / 3600 / 1e12, 380,
            "the report has 380 to 430 for parts of the training, so hours without progress must be among the card's",
        ),
        ("dollars at $2 an hour, and the lecture's", run["gpu_hours"] * run["price_per_gpu_hour"], run["compute_dollars"], ""),
        (
            "tonnes of the model card, and of the lecture", card_tonnes, run["tonnes_co2e"],
            "the card reckons by place: 8,930 t for its hours at 700 W (0 t by contracts); the lecture's grid is half as dirty",
        ),
        (
            "grams a kWh in the card, and in the lecture", card_grams, run["tonnes_co2e"] * 1e6 / (run["gpu_hours"] * 0.7),
            "about the mean of the United States, and about half of it",
        ),
        (
            "tonnes a seat if it is 2,000 flights, and below 1 t of CO2 alone", run["tonnes_co2e"] / 2000, 1.0,
            "2 t for New York - London and back count contrails too, or a better class; CO2 alone in economy is below 1 t: "
            "4,000 t are then over 4,000 seats",
        ),
    ]  # fmt: skip
    return [
        {"what": what, "one": one, "other": other, "ratio": one / other, "agree": abs(one / other - 1) <= 0.05, "why": why}
        for what, one, other, why in rows
    ]


def shown(sheet: dict[str, Any]) -> str:
    """A table for people."""
    published = any("published" in line for line in sheet["lines"])
    head = ["line", "figure", "unit", *(["published"] if published else []), "follows from"]
    rows = [
        [
            line["what"], f"{line['value']:.4g}", line["unit"],
            *([f"{line['published']:.4g}" if line["published"] else ""] if published else []), line["follows"],
        ]
        for line in sheet["lines"]
    ]  # fmt: skip
    assumed = [[line["what"], f"{line['value']:.4g}", line["unit"], line["follows"]] for line in sheet["assumptions"]]
    laws = [
        [entry["rule"], f"{entry['flop']:.0e}", "above" if entry["above"] else "below", f"{entry['share']:.3g} of it"]
        for entry in sheet["thresholds"]
    ]
    tables = [
        table(head, rows, (2, len(head) - 1)), table(["assumed", "figure", "unit", "source"], assumed, (2, 3)),
        table(["law", "FLOP", "this run", "share"], laws, (2,)),
    ]  # fmt: skip
    if "checks" in sheet:
        checks = [
            [entry["what"], f"{entry['one']:.4g}", f"{entry['other']:.4g}", "yes" if entry["agree"] else "no", entry["why"]]
            for entry in sheet["checks"]
        ]
        tables.append(table(["published figures against each other", "one", "other", "agree", "why"], checks, (3, 4)))
    return "\n\n".join([*tables, f"left out: {', '.join(sheet['left_out'])}"])
