"""Greedy generation against transformers' `generate`: tokens a second from one folder, and the same ids.

A random Qwen3 of 6 layers x 256 with vocabulary 4,096, float32; 128 new tokens after prompts of 8, 64 and 250 tokens, one at
a time, and after 16 prompts of 8 to 250 tokens at once, which transformers pads on the left. Turn by turn, three
repetitions, medians; the time is that of the whole call, reading the prompt included.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from common import arguments, conclude, machine
from groundup.device import choose
from groundup.model.decoder import LanguageModel
from groundup.model.folder import load_decoder
from groundup.serving.engine import Sampling, generate

NEW, REPETITIONS, VOCABULARY = 128, 3, 4096
LENGTHS = (8, 64, 250)
CLAIM = "greedy generation, batch of 1, the same ids: tokens a second over transformers'"
BARS = {1: 5.0, 16: 3.0}


def main() -> None:
    arguments(__doc__)
    try:
        import transformers
    except ImportError:
        return conclude(CLAIM, None, "times", BARS[1], None, reason="transformers is not installed")
    choose()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        theirs = made_by(transformers, Path(folder))
        ours = load_decoder(Path(folder))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(LENGTHS[0], LENGTHS[-1], 16).int().tolist()
    work = {
        1: [[prompt_of(length, generator)] for length in LENGTHS],
        16: [[prompt_of(length, generator) for length in lengths]],
    }
    print(f"{'rows':>4} {'transformers':>13} {'groundup':>9} {'ratio':>6} {'same ids':>9}")
    ratios, holds = {}, True
    for rows, batches in work.items():
        rates = compare(ours, theirs, batches)
        mine, peer, equal = median(rates[0]), median(rates[1]), rates[2]
        ratios[rows] = mine / peer
        holds &= equal and ratios[rows] >= BARS[rows]
        print(f"{rows:4} {peer:13,.0f} {mine:9,.0f} {ratios[rows]:6.2f} {equal!s:>9}")
    return conclude(CLAIM, ratios[1], "times", BARS[1], holds, peer=f"batch of 16 (bar {BARS[16]:g})", peer_figure=ratios[16])


def made_by(transformers: ModuleType, folder: Path) -> torch.nn.Module:
    """transformers' own random model, read from the folder that it wrote, as anybody would read it."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, intermediate_size=768, max_position_embeddings=1024, tie_word_embeddings=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # as it is initialised, every token is as likely as any other
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompt_of(length: int, generator: torch.Generator) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def compare(
    ours: LanguageModel, theirs: torch.nn.Module, batches: list[list[list[int]]]
) -> tuple[list[float], list[float], bool]:
    """Tokens a second of every repetition, ours and theirs, and whether all ids were equal."""
    rates: tuple[list[float], list[float]] = ([], [])
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
                rates[side].append(NEW * sum(map(len, batches)) / seconds[side])
    return *rates, same


def generate_theirs(theirs: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return found[:, longest:].tolist()


if __name__ == "__main__":
    main()
