"""Held-out bits per byte of the laptop's base model below xz's and the Kneser-Ney 3-gram's; the goal is the 5-gram's."""

import json

from common import arguments, conclude, finished_run


def main() -> None:
    folder = arguments(__doc__, run="runs/laptop").run
    finished_run(folder)
    bits_per_byte = json.loads((folder / "evaluation" / "stage.json").read_text())["results"]["bits_per_byte"]
    overall = bits_per_byte["overall"]
    for name, bits in overall.items():
        print(f"{name:<8} {bits:.4f} bits per byte")
    low, high = bits_per_byte["interval"]
    print(f"model, 95 % over {bits_per_byte['documents']} documents: {low:.4f} to {high:.4f}")
    for domain, row in bits_per_byte["by_domain"].items():
        print(f"{domain:<14}", "  ".join(f"{name} {bits:.4f}" for name, bits in row.items()))
    bar = min(overall["xz"], overall["3-gram"])
    conclude(
        "base model, held-out bits per byte below xz and 3-gram",
        overall["model"],
        "bits/byte",
        bar,
        overall["model"] < bar,
        peer="5-gram (goal)",
        peer_figure=overall["5-gram"],
    )


if __name__ == "__main__":
    main()
