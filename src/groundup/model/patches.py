"""The byte-level language model: no tokenizer, but patches (MegaByte, Yu et al. 2023).

Bytes are embedded and cut into patches of P. A large decoder reads one vector per patch; a small one predicts the bytes of
each patch from the large one's output for all patches before, and from the bytes of the patch so far:

    across:  start, patch 0, patch 1, ...                 -> what is known before patch 0, 1, 2, ...
    within:  that of patch m, spread over its P positions, + the bytes mP - 1, mP, ..., mP + P - 2  -> bytes mP ... mP + P - 1

So the position that predicts byte t + 1 has seen bytes 0 ... t, and no more. Both decoders are those of `decoder`.

Shape suffixes: B batch, T bytes, M patches of a row, N new patches, G patches under way, P bytes a patch, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model import decoder
from groundup.model.base import LanguageModel, Linear
from groundup.model.decoder import DecoderConfig, KeyValueCache
from groundup.model.origin import WithOrigin


@dataclass(frozen=True)
class PatchesConfig(WithOrigin):
    patch_size: int
    max_position_embeddings: int  # bytes
    across: DecoderConfig  # its vocabulary is one: the start of a document
    within: DecoderConfig  # its vocabulary is that of the bytes
    model_type: str = "groundup_patches"

    @property
    def vocab_size(self) -> int:
        return self.within.vocab_size

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, one per byte."""
        return self.within.hidden_size

    def as_dict(self) -> dict[str, Any]:
        return {**self.sizes(), "vocab_size": self.vocab_size}


def shape_for(depth: int, vocabulary: int, context: int, patch: int = 4) -> tuple[PatchesConfig, list[str]]:
    """`context` in bytes. The large decoder has this depth, the small one half of it."""
    across, _ = decoder.shape_for(depth, 1, context // patch + 1)
    within, _ = decoder.shape_for(max(1, depth // 2), vocabulary, patch)
    return PatchesConfig(patch, context, across, within), [
        f"patches of {patch} bytes: about what a token of a vocabulary of 4,096 holds",
        f"across patches a decoder {across.hidden_size} wide and {across.num_hidden_layers} deep, within them one "
        f"{within.hidden_size} wide and {within.num_hidden_layers} deep: MegaByte too makes the local model the smaller",
    ]


@dataclass
class PatchCache:
    """The bytes so far, the large decoder's keys and values, and what it made of them, with room for `length` bytes a row."""

    ids: Tensor  # (B, length)
    filled: Tensor  # (B,)
    across: KeyValueCache
    known: Tensor  # (B, M, D): what is known before each patch

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.ids, self.filled, self.known = self.ids[rows], self.filled[rows], self.known[rows]
        self.across.select(rows)


class Backbone(nn.Module):
    """Bytes to hidden states, one a byte, as wide as the small decoder."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        self.config = config
        self.across = decoder.Backbone(config.across)
        self.within = decoder.Backbone(config.within)
        width = config.patch_size * config.within.hidden_size
        self.join = Linear(width, config.across.hidden_size)
        self.spread = Linear(config.across.hidden_size, width)

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: PatchCache | None = None,
        lengths_B: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (batch, time, width) after the final norm; arguments as of the decoder's `Backbone`.

        Every document that shares a row has patches of its own: the result is as if it were alone.
        """
        if cache is not None:
            return self._forward_cached(ids_BT, cache, lengths_B, dtype)
        B, P = len(ids_BT), self.config.patch_size
        slots_BT, starts_BM, documents_BM = self._layout(ids_BT, documents_BT)
        M = starts_BM.shape[1]
        rows_B1 = torch.arange(B, device=ids_BT.device)[:, None]
        bytes_BTD = self.within.embed_tokens(ids_BT).to(dtype)
        # Slot 0 of a document is empty: no byte comes before its first.
        placed_BSD = bytes_BTD.new_zeros(B, M * P + 1, bytes_BTD.shape[-1]).index_put((rows_B1, slots_BT), bytes_BTD)
        patches_BMD = self.join(placed_BSD[:, 1:].reshape(B, M, -1))
        before_BMD = F.pad(patches_BMD[:, :-1], (0, 0, 1, 0))
        inputs_BMD = torch.where(starts_BM[..., None], self._start(dtype), before_BMD)
        known_BMD = self.across(inputs_BMD, documents_BM, dtype=dtype)
        inner_BMPD = placed_BSD[:, :-1].reshape(B * M, P, -1) + self.spread(known_BMD).view(B * M, P, -1)
        hidden_BSD = self.within(inner_BMPD, dtype=dtype).view(B, M * P, -1)
        return hidden_BSD[rows_B1, slots_BT]

    def _layout(self, ids_BT: Tensor, documents_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The slot of each byte, where each document begins a patch of its own, after an empty slot; which patches are
        a document's first; and the document of each patch."""
        (B, T), P, device = ids_BT.shape, self.config.patch_size, ids_BT.device
        times_T = torch.arange(T, device=device)
        if documents_BT is None:
            starts_BM = (torch.arange(T // P + 1, device=device) == 0).expand(B, -1)
            return (times_T + 1).expand(B, T), starts_BM, None
        begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
        begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        numbers_BT = begins_BT.cumsum(1) - 1
        lengths_BS = torch.zeros_like(numbers_BT).scatter_add_(1, numbers_BT, torch.ones_like(numbers_BT))
        patches_BS = torch.where(lengths_BS > 0, lengths_BS // P + 1, 0)
        firsts_BS = patches_BS.cumsum(1) - patches_BS  # each document's first patch
        offsets_BT = times_T - torch.where(begins_BT, times_T, 0).cummax(1).values
        slots_BT = firsts_BS.gather(1, numbers_BT) * P + 1 + offsets_BT
        patch_M = torch.arange(int(patches_BS.sum(1).max()), device=device).expand(B, -1).contiguous()
        documents_BM = torch.searchsorted(firsts_BS, patch_M, right=True) - 1
        return slots_BT, firsts_BS.gather(1, documents_BM) == patch_M, documents_BM

    def _start(self, dtype: torch.dtype) -> Tensor:
        return self.across.embed_tokens.weight[0].to(dtype)

    def _forward_cached(self, ids_BT: Tensor, cache: PatchCache, lengths_B: Tensor | None, dtype: torch.dtype) -> Tensor:
        (B, T), P, device = ids_BT.shape, self.config.patch_size, ids_BT.device
        rows_B1, inside_P = torch.arange(B, device=device)[:, None], torch.arange(P, device=device)
        slots_BT = cache.filled[:, None] + torch.arange(T, device=device)
        cache.ids[rows_B1, slots_BT] = ids_BT
        filled_before, cache.filled = cache.filled, cache.filled + (T if lengths_B is None else lengths_B)

        # The large decoder reads the patches that became complete with these bytes. Rows with fewer of them than others also
        # read bytes to come, and read them again when these are known.
        new_B = cache.filled // P + 1 - cache.across.filled
        if N := int(new_B.max()):
            patches_BN = cache.across.filled[:, None] + torch.arange(N, device=device)
            positions_BNP = ((patches_BN[..., None] - 1) * P + inside_P).clamp(0, cache.ids.shape[1] - 1)
            bytes_BND = self.within.embed_tokens(cache.ids[rows_B1, positions_BNP.flatten(1)]).view(B, N, -1).to(dtype)
            inputs_BND = torch.where((patches_BN == 0)[..., None], self._start(dtype), self.join(bytes_BND))
            known_BND = self.across(inputs_BND, cache=cache.across, lengths_B=new_B, dtype=dtype)
            cache.known[rows_B1, patches_BN] = known_BND.to(cache.known.dtype)

        # The small one starts again at the beginning of the patch that the first new byte predicts a byte of.
        first_B = (filled_before + 1) // P
        patches_BG = first_B[:, None] + torch.arange(1 if T == 1 else (T - 1) // P + 2, device=device)
        positions_BS = (patches_BG[..., None] * P + inside_P - 1).flatten(1)
        bytes_BSD = self.within.embed_tokens(cache.ids[rows_B1, positions_BS.clamp(0, cache.ids.shape[1] - 1)])
        bytes_BSD = (bytes_BSD * (positions_BS >= 0)[..., None]).to(dtype)
        known_BSD = self.spread(cache.known[rows_B1, patches_BG].to(dtype)).view(bytes_BSD.shape)
        hidden = self.within((bytes_BSD + known_BSD).view(-1, P, bytes_BSD.shape[-1]), dtype=dtype)
        return hidden.view(bytes_BSD.shape)[rows_B1, slots_BT + 1 - first_B[:, None] * P]


class PatchedBytes(LanguageModel):
    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config, Backbone(config), config.within.hidden_size)

    def new_cache(self, batch: int, length: int, device: torch.device) -> PatchCache:
        patches = length // self.config.patch_size + 3  # rows that read ahead need room to do so
        return PatchCache(
            torch.zeros(batch, length, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            KeyValueCache.empty(self.config.across, batch, patches, device),
            torch.zeros(batch, patches, self.config.across.hidden_size, device=device),
        )
