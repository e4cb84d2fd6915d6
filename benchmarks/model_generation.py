"""Greedy generation against transformers' `generate`: tokens a second from one folder, and the same ids.

Two Qwen3 of 6 layers x 256 with vocabulary 4,096, float32. One is trained for a minute on textbooks and continues
held-out ones; a text it writes greedily repeats itself, and what repeats itself is drafted (prompt lookup) and costs
fewer passes: the figure. The other has random weights and random prompts; hardly anything repeats, so its row is what a
plain pass costs. transformers decodes as it does unless asked otherwise, a token a pass. 128 new tokens after prompts of
8, 64 and 250 tokens, one at a time, and after 16 prompts of 8 to 250 tokens at once, which transformers pads on the
left. Turn by turn, three repetitions, medians; the time is that of the whole call, reading the prompt included.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from types import ModuleType
from unittest.mock import patch

import torch

import timed
from common import ROOT, conclude, machine
from groundup.core.device import choose
from groundup.generation.decoding import Decoding
from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder as model_folder
from groundup.model.base import LanguageModel, initialise
from groundup.model.decoder import Decoder, DecoderConfig

NEW, REPETITIONS, VOCABULARY = 128, 3, 4096
LENGTHS = (8, 64, 250)
SHAPE = DecoderConfig(
    vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, intermediate_size=768, max_position_embeddings=1024,
)  # fmt: skip
CLAIM = "greedy generation, a model trained for a minute, batch of 1, the same ids: tokens a second over transformers'"
BARS = {1: 5.0, 16: 3.0}

Documents = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="measuring material")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training")
    options = parser.parse_args()
    try:
        import transformers
    except ImportError:
        return conclude(CLAIM, None, "times", BARS[1], None, reason="transformers is not installed")
    if not (options.data / "text" / "openstax.parquet").is_file():
        return conclude(CLAIM, None, "times", BARS[1], None, reason="text/openstax is missing; give --data DIR")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    choose()
    print(machine())
    ratios, same = {}, True
    with tempfile.TemporaryDirectory() as work:
        makers = {
            "trained": lambda folder: trained(options.data, folder, 60 * options.minutes),
            "random": lambda folder: random(transformers, folder),
        }
        for name, make in makers.items():
            folder = Path(work) / name
            documents = make(folder)
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            theirs.generation_config.eos_token_id = None  # 128 tokens, come what may
            ratios[name], equal = compare(name, model_folder.load_decoder(folder), theirs, documents)
            same &= equal
    holds = same and all(ratios["trained"][rows] >= bar for rows, bar in BARS.items())
    plain = " and ".join(f"{ratio:.2g}" for ratio in ratios["random"].values())
    note = f"batch of 16 (bar {BARS[16]:g}); random weights, 1 and 16: {plain}"
    return conclude(
        CLAIM, ratios["trained"][1], "times", BARS[1], holds, peer=note, peer_figure=ratios["trained"][16]
    )


def trained(data: Path, folder: Path, seconds: float) -> Documents:
    """Writes the model; returns held-out documents long enough for every prompt."""
    training, held_out = timed.openstax(data)
    tokenizer = timed.byte_pairs(training, VOCABULARY)
    model = Decoder(SHAPE)
    initialise(model, 0)
    rows = timed.stream(timed.encoded(folder.with_suffix(".tokens"), training, tokenizer), tokenizer, 256)
    read = timed.train(model, rows, 16, seconds)
    bits = timed.held_out_bits(held_out[:20], tokenizer, timed.nats_of(model.eval()))
    print(f"trained for {seconds:.0f} s on {read:,} tokens: {bits:.2f} bits per byte of held-out text")
    model_folder.save(folder, model.cpu(), tokenizer, chat=False)
    documents = [[tokenizer.end_of_text, *ids] for ids in tokenizer.encode_batch(held_out, 2)]
    return [document for document in documents if len(document) >= LENGTHS[-1]]


def random(transformers: ModuleType, folder: Path) -> Documents:
    """transformers' own random model, in the folder that it writes, and random documents."""
    config = transformers.Qwen3Config(**SHAPE.as_dict(), pad_token_id=None, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # as it is initialised, every token is as likely as any other
    model.save_pretrained(folder)
    return torch.randint(VOCABULARY, (16, LENGTHS[-1]), generator=torch.Generator().manual_seed(0)).tolist()


def compare(
    name: str, ours: LanguageModel, theirs: torch.nn.Module, documents: Documents
) -> tuple[dict[int, float], bool]:
    """Prints a line for each size of batch; returns our tokens a second over theirs, and whether all ids were equal."""
    work = {
        1: [[document[:length]] for document, length in zip(documents, LENGTHS, strict=False)],
        16: [[document[:length] for document, length in zip(documents, spread(16), strict=False)]],
    }
    ratios, same = {}, True
    print(f"{'weights':8} rows  transformers  groundup  ratio  bar  same ids  tokens a pass")
    for rows, batches in work.items():
        mine, peer, equal = speeds(ours, theirs, batches)
        ratios[rows] = mine / peer
        same &= equal
        print(
            f"{name:8} {rows:4} {peer:13,.0f} {mine:9,.0f} {ratios[rows]:6.2f} {BARS[rows]:4.1f} {equal!s:>9} "
            f"{tokens_a_pass(ours, batches):14.2f}",
            flush=True,
        )
    return ratios, same


def spread(rows: int) -> list[int]:
    return torch.linspace(LENGTHS[0], LENGTHS[-1], rows).int().tolist()


def speeds(ours: LanguageModel, theirs: torch.nn.Module, batches: list[Documents]) -> tuple[float, float, bool]:
    """Tokens a second, ours and theirs, and whether all ids were equal."""
    speeds_of: tuple[list[float], list[float]] = ([], [])
    same = True
    for repetition in range(-1, REPETITIONS):  # the first warms up
        seconds = [0.0, 0.0]
        for prompts in batches:
            start = time.perf_counter()
            mine = generate(ours, prompts, [], Sampling(NEW, temperature=0), seed=0)
            between = time.perf_counter()
            peer = generate_theirs(theirs, prompts)
            seconds[0] += between - start
            seconds[1] += time.perf_counter() - between
            same &= mine == peer
        if repetition >= 0:
            for side in (0, 1):
                speeds_of[side].append(NEW * sum(map(len, batches)) / seconds[side])
    return median(speeds_of[0]), median(speeds_of[1]), same


def tokens_a_pass(ours: LanguageModel, batches: list[Documents]) -> float:
    """Of each row; reading the prompt is a pass, too."""
    with patch.object(Decoding, "decode", autospec=True, side_effect=Decoding.decode) as step:
        for prompts in batches:
            generate(ours, prompts, [], Sampling(NEW, temperature=0), seed=0)
    return NEW * len(batches) / (step.call_count + len(batches))


def generate_theirs(theirs: torch.nn.Module, prompts: Documents) -> Documents:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generated = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return generated[:, longest:].tolist()


if __name__ == "__main__":
    main()
