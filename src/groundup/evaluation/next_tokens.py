"""What a language model is: after every token of a text, a probability for each possible next one."""

from collections.abc import Sequence
from typing import Any

import torch

from groundup.model.base import LanguageModel
from groundup.tokenizer.tokenizer_folder import ByteTokens

LIKELIEST = 10


@torch.no_grad()
def next_tokens(model: LanguageModel, tokenizer: ByteTokens, texts: Sequence[str]) -> list[dict[str, Any]]:
    """For each text {"tokens": [...], "likeliest": [[(token, probability), ...] after each token]}, most probable first.

    A text begins after the end-of-text token and is cut to the context. Tokens are text, with `\\xc3` for a byte that is
    only part of a character. Rows of the vocabulary without a token are left out.
    """
    predictions = []
    for text in texts:
        ids = tokenizer.encode(text)[: model.config.max_position_embeddings - 1]
        row = torch.tensor([[tokenizer.begin_of_text, *ids]], device=model.lm_head.weight.device)
        logits_TV = model(row)[0, 1:, : tokenizer.size].float()
        probabilities_TK, tokens_TK = logits_TV.softmax(dim=-1).topk(min(LIKELIEST, tokenizer.size), dim=-1)
        likeliest = [
            [(_text(tokenizer, token), probability) for token, probability in zip(tokens, probabilities, strict=True)]
            for tokens, probabilities in zip(tokens_TK.tolist(), probabilities_TK.tolist(), strict=True)
        ]
        predictions.append({"tokens": [_text(tokenizer, token) for token in ids], "likeliest": likeliest})
    return predictions


def _text(tokenizer: ByteTokens, token: int) -> str:
    for name, special in tokenizer.special_tokens.items():
        if special == token:
            return name
    return tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
