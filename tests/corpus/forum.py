"""A forum of made pages, each line known to be template or not: for the test and the benchmark of template lines."""

import numpy as np

WORDS = [
    "compiler", "language", "reads", "program", "memory", "value", "register", "loop", "branch", "table",
    "stack", "server", "cable", "printer", "driver", "kernel", "window", "mouse", "screen", "button",
    "paper", "engine", "garden", "bread", "winter", "river", "bridge", "letter", "market", "window",
    "number", "music",
]  # fmt: skip
REPEATED_POSTS = [
    ["Thanks, that worked!"],
    ["+1"],
    ["Same problem here."],
    ["Me too, any news on this?"],
    ["Solved.", "Thank you all for your help!"],
    ["This thread is closed. Please open a new one."],
]
HEADER = ["The Friendly Forum", "Home | Forums | Members | Search | Log in", "Where people help each other"]
MENU = ["Forum rules", "Frequently asked questions", "Download", "Donate", "New posts today: {today}"]
FOOTER = [
    "Powered by Friendlyboard 3.1",
    "Contact us - Privacy - Terms",
    "Page made in 0.0{today} seconds",
    "© 2024 The Forum",
]
SIGNATURES = [
    ["Debian on everything that has a plug"],
    ["--", "Never send a human to do the work of a machine."],
    ["Please read the rules before you post.", "My other computer is a data centre"],
    ["~ carpe noctem ~"],
]


def sentence(generator: np.random.Generator) -> str:
    words = generator.choice(WORDS, generator.integers(5, 18)).tolist()
    return " ".join(words).capitalize() + "."


def pages(count: int = 300, seed: int = 0) -> list[list[tuple[str, bool]]]:
    """For each page its lines, and whether each is template: header, menu, footer, or the signature of a member.

    Of forty members, some hundred times as busy as others, half sign each of their posts. A third of the posts are
    ones that many people write, and some members write the same sentence often.
    """
    generator = np.random.default_rng(seed)
    members = [f"{first}{second}" for first in ("blue", "old", "fast", "tiny", "mad") for second in WORDS[:8]]
    signatures = {
        member: [f"{line} ({member})" if line != "--" else line for line in SIGNATURES[number // 2 % 4]]
        for number, member in enumerate(members)
        if number % 2 == 0
    }
    favourites = {member: sentence(generator) for member in members[1::2]}
    busy = 1 / np.arange(1, len(members) + 1)
    found = []
    for number in range(count):
        today = int(generator.integers(10, 99))
        page = [(line.format(today=today), True) for line in [*HEADER, *MENU]]
        page.append((f"{sentence(generator)} (topic {number})", False))
        for post in range(int(generator.integers(2, 14))):
            member = members[generator.choice(len(members), p=busy / busy.sum())]
            page += [(member, False), (f"#{post + 1} posted {generator.integers(1, 24)} hours ago", False)]
            kind = generator.random()
            if kind < 0.33:
                body = REPEATED_POSTS[generator.integers(len(REPEATED_POSTS))]
            elif kind < 0.45 and member in favourites:
                body = [favourites[member]]
            else:
                body = [sentence(generator) for _ in range(generator.integers(1, 6))]
            page += [(line, False) for line in body]
            page += [(line, True) for line in signatures.get(member, [])]
        page += [(line.format(today=today), True) for line in FOOTER]
        found.append(page)
    return found
