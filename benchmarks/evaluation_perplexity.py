"""Rolling perplexity of encyclopedia articles: the largest relative difference from lm-eval's figures, in its windows.

Bits per byte, byte perplexity and word perplexity of whole articles, of which some are longer than the context; beside them ours
in windows that overlap by half. The model is that of `evaluation_lm_eval.py`.
"""

import argparse
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from common import ROOT, conclude
from evaluation_lm_eval import save
from groundup.core.files import write_text
from groundup.evaluation.evaluate import evaluate

BAR = 1e-6
TASK = 'kind = "perplexity"\nfiles = ["articles.parquet"]\ntext = "{{ text }}"\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--documents", type=int, default=12)
    options = parser.parse_args()
    claim = __doc__.splitlines()[0]
    articles = options.data / "text" / "wikipedia_mix.parquet"
    if not articles.exists():
        return conclude(claim, None, "of it", BAR, None, reason="the articles are missing; give --data DIR")
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        return conclude(claim, None, "of it", BAR, None, reason="lm-eval is missing: pip install 'groundup[bench]'")
    table = pq.read_table(articles)
    texts = [text for text in table["text"].slice(0, options.documents).to_pylist() if text and text.strip()]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save(work / "model", options.data / "benchmarks")
        pq.write_table(table.select(["text"]).slice(0, options.documents), work / "articles.parquet")
        for windows in ("half", "disjoint"):
            write_text(work / f"{windows}.toml", TASK + f'windows = "{windows}"\n')
        ours = evaluate([str(work / "model")], [str(work / "disjoint.toml"), str(work / "half.toml")])["results"]
        # It predicts a text's first token from the one that begins every text; told so, its tokenizer must not add another.
        peer = HFLM(str(work / "model"), device="cpu", dtype="float32", batch_size=4, add_bos_token=False)
        requests = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in texts]
        nats = peer.loglikelihood_rolling(requests, disable_tqdm=True)
    sizes, words = [len(text.encode()) for text in texts], [len(text.split()) for text in texts]
    theirs = {
        "bits_per_byte": bits_per_byte([*zip(nats, sizes, strict=True)]),
        "byte_perplexity": weighted_perplexity([*zip(nats, sizes, strict=True)]),
        "word_perplexity": weighted_perplexity([*zip(nats, words, strict=True)]),
    }
    for name, value in theirs.items():
        print(f"{name}: lm-eval {value:.8g}, ours {ours[0][name]:.8g}; windows that overlap by half {ours[1][name]:.8g}")
    print(f"{ours[0]['n']} articles, {sum(sizes):,} bytes")
    # That by words of a random model is exp(41), which enlarges the last bits 41 times: shown, but no part of the bar.
    worst = max(abs(ours[0][name] / theirs[name] - 1) for name in ("bits_per_byte", "byte_perplexity"))
    conclude(claim, worst, "of it", BAR, worst <= BAR)


if __name__ == "__main__":
    main()
