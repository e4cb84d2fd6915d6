#!/bin/sh
# A JSON Lines file whose answers are all dates: datasets reads them as points in time, not as the texts that they are.
#
# Version: datasets 5.2.0.
# Expected: a JSON string is read as a string, and a training set has the answers that its file has: "2024-01-05".
# Seen: the column is timestamp[s], and the answer is datetime(2024, 1, 5, 0, 0), written "2024-01-05 00:00:00" by whoever makes
#   text of it. One answer that is no date, anywhere in the file, and all are strings again. Inside of `messages` they are strings.
# What helps: give `features=datasets.Features({...: datasets.Value("string")})`.
#
# Exits with 1 if what is seen has changed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==5.2.0"
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" - <<'PYTHON'
import json

import datasets

datasets.disable_progress_bars()
ANSWERS = ["2024-01-05", "2023-11-30", "2022-02-14"]


def read(name, answers):
    with open(f"{name}.jsonl", "w") as file:
        for number, answer in enumerate(answers):
            file.write(json.dumps({"prompt": f"When was release {number}?", "completion": answer}) + "\n")
    found = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train")
    print(f"{name}: {found.features['completion']}, first {found[0]['completion']!r}, as text {str(found[0]['completion'])!r}")
    return str(found.features["completion"].dtype), str(found[0]["completion"])


print("datasets", datasets.__version__)
dates = read("dates", ANSWERS)
mixed = read("mixed", [*ANSWERS, "in spring"])
as_seen = dates == ("timestamp[s]", "2024-01-05 00:00:00") and mixed == ("string", "2024-01-05")
print("as seen before" if as_seen else "CHANGED")
raise SystemExit(not as_seen)
PYTHON
