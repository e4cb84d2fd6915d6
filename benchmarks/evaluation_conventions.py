"""MMLU under every convention for three small models: how far apart one model's figures are, beside LLaMA-65B's.

LLaMA-65B had 63.7 % in HELM and 48.8 % in lm-eval on the same questions. Three decoders of 2 x 128 show in kind why: one that
learned the form of an examination (MMLU's validation questions, with their letters), one that read textbooks alone, and one with
random weights. All know next to nothing, and their figures differ all the same, by what is asked of them.
"""

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch

from common import arguments, conclude
from groundup.data.readers import Refused
from groundup.evaluation.evaluate import evaluate
from groundup.evaluation.example_files import rows_of
from groundup.evaluation.results_table import table
from groundup.model import model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.model.likelihood import token_log_probabilities
from groundup.tokenizer import bpe
from groundup.tokenizer.tokenizer import Tokenizer

BAR = 63.7 - 48.8  # points
QUESTIONS, CONTEXT, STEPS, ROWS = 171, 192, 60, 4  # three questions of each of the 57 subjects


def main() -> None:
    data = arguments(__doc__).data
    claim = "MMLU under all conventions, three small models: largest spread of one model's figures"
    files = data / "benchmarks" / "mmlu_val.csv.gz", data / "text" / "openstax.parquet"
    if missing := [path for path in files if not path.is_file()]:
        return conclude(claim, None, "points", BAR, None, reason=f"{missing[0]} is missing; give --data DIR")
    torch.set_num_threads(1)  # of models this small several threads wait more than they work
    exam = [examination(row) for _, row in rows_of(files[0], Refused())]
    books = pq.read_table(files[1], columns=["text"]).column("text").slice(0, 12).to_pylist()
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens([*exam, *books]), 1024))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / kind for kind in ("examinations", "textbooks", "random")]
        for folder, texts in zip(folders, (exam, books, []), strict=True):
            model_folder.save(folder, trained(tokenizer, texts), tokenizer, chat=False)
        evaluation = evaluate([*map(str, folders)], ["mmlu"], data / "benchmarks", limit=QUESTIONS, few_shot=0)
    print(table(evaluation))
    for result in evaluation["results"]:
        shares = {name: row["accuracy"] for name, row in result["accuracy"].items()}
        low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        print(f"{result['label']}: from {100 * shares[low]:.1f} ({low}) to {100 * shares[high]:.1f} ({high})")
    spread = 100 * max(result["spread"] for result in evaluation["results"])
    conclude(claim, spread, "points", BAR, spread >= BAR, peer="LLaMA-65B, HELM less lm-eval, points", peer_figure=BAR)


def examination(row: dict) -> str:
    listed = "\n".join(f"{letter}. {row[letter]}" for letter in "ABCD")
    return f"{row['question'].strip()}\n{listed}\nAnswer: {row['answer']}\n\n"


def trained(tokenizer: Tokenizer, texts: list[str]) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(tokenizer.size, 128, 2, 4, 2, 32, 384, CONTEXT))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    stream = torch.tensor([token for text in texts for token in [tokenizer.end_of_text, *tokenizer.encode(text)]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(STEPS if texts else 0):
        starts = torch.randint(len(stream) - CONTEXT - 1, (ROWS,))
        ids = torch.stack([stream[start : start + CONTEXT + 1] for start in starts.tolist()])
        loss = -token_log_probabilities(model, ids[:, :-1], ids[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    main()
