#!/bin/sh
# CLD2 finds a French paragraph at the start of an English text and not in its middle, where it reports 99 % English, reliable.
#
# Versions: pycld2 0.42.
# Expected: `detect` reports the languages of a text by their shares of its bytes: one paragraph of 110 in a text of 2,600 is 4 %,
#   wherever it is. Alone, the paragraph is French for 99 %.
# Seen: as the first paragraph it is 4 % French. After twelve of the 24 English paragraphs French is not reported: English has
#   99 %, and the answer is reliable. With returnVectors one range of English covers the whole text.
# What helps: to identify each paragraph by itself, where a text's share of one language matters (a filter of a corpus, say).
#
# Exits with 1 if what is seen has changed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "pycld2==0.42"
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from importlib import metadata

import pycld2

ENGLISH = [
    "The committee met on {day} to discuss the budget for the coming year and agreed on most of the points.",
    "Several members asked for more money for the library, which has not bought new books since last {day}.",
    "The mayor said on {day} that the roads in the north of the town would be repaired before the summer ends.",
    "A group of parents wrote a letter about the school bus, which often arrives late on {day} when it rains.",
    "Volunteers will plant forty trees along the river next {day}, and everybody who wants to help is welcome.",
    "The bakery on Main Street closes on {day} now, since its owner could not find anybody to work then.",
]
FRENCH = "Le conseil municipal a décidé hier soir de fermer la vieille piscine et de construire un nouveau théâtre."
english = [paragraph.format(day=day) for day in ("Monday", "Tuesday", "Thursday", "Friday") for paragraph in ENGLISH]


def detect(paragraphs: list[str]) -> tuple:
    text = "\n".join(paragraphs)
    reliable, _, shares, ranges = pycld2.detect(text, isPlainText=True, bestEffort=True, returnVectors=True)
    return reliable, [(code, share) for _, code, share, _ in shares if share], [(code, size) for _, size, _, code in ranges]


alone, first, middle = detect([FRENCH]), detect([FRENCH, *english]), detect([*english[:12], FRENCH, *english[12:]])
print("pycld2", metadata.version("pycld2"))
for where, (reliable, shares, ranges) in (("alone", alone), ("first", first), ("in the middle", middle)):
    print(f"{where}: shares {shares}, reliable: {reliable}, ranges in bytes {ranges}")
as_seen = alone[1] == [("fr", 99)] and dict(first[1]).get("fr", 0) > 2 and middle[:2] == (True, [("en", 99)])
print("as seen before" if as_seen else "CHANGED")
raise SystemExit(not as_seen)
PYTHON
