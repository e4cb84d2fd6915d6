"""A language model from nothing, in one file to read first: text -> tokens -> model -> loss -> samples -> answers -> preferences.

    python examples/first_file.py

It needs only PyTorch and takes some seconds. Each part is the smallest form of a chapter of groundup, which the comment above it
names. Variable names end in shapes: B sequences, T tokens, D width, V vocabulary, H heads.
"""

import copy
import itertools
import math
import random
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
ANIMALS = {"dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "bee": "buzzes", "wolf": "howls"}

# ---- 1. Data. A corpus is text that people wrote; here a rule generates it. (groundup: corpus/) -------------------------------
random.seed(0)
FORMS = ["the {0} {1}.", "a {0}? it {1}.", "what does it do? it {1}.", "we see the {0}."]
CORPUS = "".join(random.choice(FORMS).format(*random.choice(list(ANIMALS.items()))) + "\n" for _ in range(600))

# ---- 2. Tokens. Byte-pair encoding: start from bytes, and merge the most frequent pair again and again. (tokenizer/) ----------


def join(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace every `pair` in `ids` by `new`."""
    joined: list[int] = []
    for token in ids:
        if joined and (joined[-1], token) == pair:
            joined[-1] = new
        else:
            joined.append(token)
    return joined


ids, pieces, merges = list(CORPUS.encode()), [bytes([byte]) for byte in range(256)], {}
for _ in range(60):
    best = Counter(itertools.pairwise(ids)).most_common(1)[0][0]
    merges[best] = len(pieces)
    pieces.append(pieces[best[0]] + pieces[best[1]])
    ids = join(ids, best, merges[best])
V = len(pieces)


def encode(text: str) -> list[int]:
    tokens = list(text.encode())
    for pair, new in merges.items():  # in the order of training
        tokens = join(tokens, pair, new)
    return tokens


def decode(tokens: list[int]) -> str:
    return b"".join(pieces[token] for token in tokens).decode(errors="replace")


# ---- 3. The model. A transformer gives each position a score for every possible next token. (model/) --------------------------


class Block(nn.Module):
    """Attention reads earlier tokens; the MLP processes each token by itself. Both add their output to their input."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H, self.norms = H, nn.ModuleList([nn.RMSNorm(D), nn.RMSNorm(D)])
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x_BTD)).unflatten(-1, (3 * self.H, -1)).transpose(1, 2).chunk(3, dim=1)
        seen_BHTd = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # causal: no token sees later ones
        x_BTD = x_BTD + self.out(seen_BHTd.transpose(1, 2).flatten(-2))
        return x_BTD + self.mlp(self.norms[1](x_BTD))


class Model(nn.Module):
    def __init__(self, D: int = 48, layers: int = 2, T: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(*(Block(D, H=4) for _ in range(layers)))
        self.head = nn.Sequential(nn.RMSNorm(D), nn.Linear(D, V, bias=False))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> scores (logits) [B, T, V]"""
        return self.head(self.blocks(self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]))


def log_probability(model: Model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of the answer, given the prompt: the sum over its tokens. The losses of parts 6 and 7 are computed from it."""
    ids_T = torch.tensor(prompt + answer)
    log_p_TV = model(ids_T[None, :-1])[0].log_softmax(-1)
    return log_p_TV.gather(1, ids_T[1:, None])[len(prompt) - 1 :].sum()


# ---- 4. Pre-training. Cross-entropy makes each next token of the corpus more likely. (training/) ------------------------------
model, data = Model(), torch.tensor(ids)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
print(f"a model that knows nothing: {math.log(V):.2f} nats for each token")
for step in range(300):
    starts_B = torch.randint(len(data) - 33, (16,))
    rows = data[starts_B[:, None] + torch.arange(33)]
    loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 99:
        print(f"pre-training, step {step + 1}: {loss.item():.2f}")

# ---- 5. Sampling. Draw the next token from the model's distribution, append it, and repeat. (generation/) ---------------------


@torch.no_grad()
def sample(model: Model, text: str, tokens: int = 16, temperature: float = 0.5) -> str:
    """The line that the model writes after `text`."""
    out = encode(text)
    for _ in range(tokens):
        scores_V = model(torch.tensor([out]))[0, -1]
        out.append(int(torch.multinomial((scores_V / temperature).softmax(-1), 1)))
        if "\n" in decode(out)[len(text) :]:
            break
    return decode(out)[len(text) :].partition("\n")[0]


print("it continues:", "the dog" + sample(model, "the dog"))
print("it cannot answer yet:", sample(model, "Q: what does the dog do? A:"))

# ---- 6. Fine-tuning (SFT). The same loss on questions with answers, over the answers only. (posttraining/sft.py) --------------
QUESTION, SHORT, FULL = "Q: what does the {0} do? A:", " it {1}.\n", " the {0} {1}.\n"
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(60):
    losses = [
        -log_probability(model, encode(QUESTION.format(*pair)), encode(form.format(*pair)))
        for pair in ANIMALS.items()
        for form in (SHORT, FULL)  # both are good answers
    ]
    optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    optimizer.step()


def answers(count: int = 4) -> list[str]:
    return [sample(model, QUESTION.format(animal)) for animal in ANIMALS for _ in range(count)]


def share_of_full_sentences() -> float:
    return sum(answer.startswith(" the") for answer in answers()) / len(answers())


print("it answers now:", sample(model, QUESTION.format("dog")))

# ---- 7. Preferences (DPO). Of two answers one is preferred: raise its probability against the other's, relative to a frozen
#         copy of the model before training (Rafailov et al. 2023). (posttraining/dpo.py) ---------------------------------------
before, reference, BETA = share_of_full_sentences(), copy.deepcopy(model), 0.5
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for step in range(15):
    losses = []
    for pair in ANIMALS.items():
        prompt, chosen, rejected = (encode(form.format(*pair)) for form in (QUESTION, FULL, SHORT))
        margin = log_probability(model, prompt, chosen) - log_probability(model, prompt, rejected)
        with torch.no_grad():
            margin_before = log_probability(reference, prompt, chosen) - log_probability(reference, prompt, rejected)
        losses.append(-F.logsigmoid(BETA * (margin - margin_before)))
    loss = torch.stack(losses).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 14):
        print(f"preferences, step {step + 1}: {loss.item():.2f}")
print(f"people preferred full sentences: {before:.0%} of the answers were, {share_of_full_sentences():.0%} are")
print("it answers now:", sample(model, QUESTION.format("bee")))
