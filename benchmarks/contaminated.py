"""A small decoder that has read a file's lines ten times in their order, among others: for the order test."""

import random
from pathlib import Path

import torch

from groundup.model import model_folder
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.model.likelihood import token_log_probabilities
from groundup.tokenizer.tokenizer import Tokenizer


def train(folder: Path, tokenizer: Tokenizer, planted: list[str], others: list[list[str]]) -> None:
    """The folder of the model. `others`: the lines of each of the other documents."""
    torch.manual_seed(0)
    documents = [planted] * 10 + others
    random.Random(3).shuffle(documents)
    stream = [token for document in documents for token in [tokenizer.end_of_text, *tokenizer.encode("\n".join(document) + "\n")]]
    model = Decoder(DecoderConfig(tokenizer.size, 128, 2, 4, 2, 32, 256, 64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for first in range(0, len(stream) - 65, 64):
        ids = torch.tensor(stream[first : first + 65])[None]
        loss = -token_log_probabilities(model, ids[:, :-1], ids[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model_folder.save(folder, model, tokenizer, chat=False)
