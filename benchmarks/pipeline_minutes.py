"""The whole pipeline of recipes/laptop.toml, from nothing, in at most 15 minutes on two cores."""

from common import arguments, conclude, finished_run

BAR_MINUTES = 15


def main() -> None:
    result = finished_run(arguments(__doc__, run="runs/laptop").run)
    for stage, seconds in result["seconds"].items():
        print(f"{stage:<12} {seconds:7.1f} s")
    minutes = result["seconds"]["all"] / 60
    conclude("whole pipeline, minutes", minutes, "min", BAR_MINUTES, minutes <= BAR_MINUTES)


if __name__ == "__main__":
    main()
