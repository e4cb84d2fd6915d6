"""DPO and PPO are each preferred over SFT on held-out prompts by the simulated annotator, 95 % interval above one half."""

from common import arguments, conclude, finished_run


def main() -> None:
    figures = finished_run(arguments(__doc__, run="runs/laptop").run)["figures"]
    for name, figure in figures["sft_overlap"].items():
        print(f"overlap with the documentation on held-out questions, {name}: {figure:.3f}")
    lows = []
    for name, figure in figures["preferred_over_sft"].items():
        print(f"{name}: preferred {figure['win_rate']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}), "
              f"mean words {figure['mean_words']:.1f}, sft {figure['sft_mean_words']:.1f}")  # fmt: skip
        lows.append(figure["low"])
    conclude("DPO and PPO preferred over SFT, lower end of 95 %", min(lows), "share", 0.5, min(lows) > 0.5)


if __name__ == "__main__":
    main()
