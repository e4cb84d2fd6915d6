"""The recurrent language model: stacked LSTMs (Hochreiter and Schmidhuber 1997), the baseline of Kaplan et al. (2020).

    i, f, o = sigmoid(W x_t + U h_{t-1} + b)    g = tanh(W x_t + U h_{t-1} + b)
    c_t = f * c_{t-1} + i * g                   h_t = o * tanh(c_t)

The state is c and h of every layer, however long the text. Each layer is in a pre-norm residual, as the decoder's blocks are,
x += lstm(rms_norm(x)); embedding and head are the decoder's too.

Shape suffixes: B batch, T time, D width, S documents, N tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from groundup.kernels import float32
from groundup.model import base
from groundup.model.base import LanguageModel
from groundup.model.decoder import RMSNorm
from groundup.model.origin import WithOrigin


@dataclass(frozen=True)
class LSTMConfig(WithOrigin):
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int  # length of the rows that it is trained on; it has no positions
    rms_norm_eps: float = 1e-6
    model_type: str = "groundup_lstm"

    def as_dict(self) -> dict[str, Any]:
        return self.sizes()


def shape_for(depth: int, vocabulary: int, context: int) -> tuple[LSTMConfig, list[str]]:
    """As many layers as the decoder of this depth, each with about as many parameters."""
    width = 32 * round(64 * depth * math.sqrt(12 / 8) / 32)
    reasons = [
        f"width {width} = 1.22 x 64 x depth in steps of 32: an LSTM has 8 width^2 parameters, a decoder's block 12 (64 depth)^2",
        "each LSTM in a pre-norm residual, as the decoder's blocks",
    ]
    return LSTMConfig(vocabulary, width, depth, context), reasons


@dataclass
class LSTMState:
    """h and c of every layer (batch, width); `filled` (batch,) counts the tokens so far."""

    hidden: list[Tensor]
    cells: list[Tensor]
    filled: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.hidden = [hidden[rows] for hidden in self.hidden]
        self.cells = [cells[rows] for cells in self.cells]
        self.filled = self.filled[rows]


class Layer(nn.Module):
    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`lengths_B`, on the CPU: real tokens of each row. The state returned is the one after the last of them."""
        # Always in float32: rounding would add up along the text.
        inputs = self.input_layernorm(x_BTD).float()
        if lengths_B is None:
            outputs, state = self.lstm(inputs, state)
        else:
            packed = pack_padded_sequence(inputs, lengths_B, batch_first=True, enforce_sorted=False)
            outputs, state = self.lstm(packed, state)
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x_BTD.shape[1])
        return x_BTD + outputs.to(x_BTD.dtype), state

    def by_kernels(self, x_BTD: Tensor, begins_BT: Tensor) -> Tensor:
        """`forward` of rows in which the state is empty before each token that `begins_BT` marks."""
        lstm = self.lstm
        inputs = F.linear(self.input_layernorm(x_BTD).float(), lstm.weight_ih_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
        return x_BTD + _Recurrence.apply(inputs, lstm.weight_hh_l0, begins_BT).to(x_BTD.dtype)


class _Recurrence(torch.autograd.Function):
    """Hidden states (batch, time, D) from the inputs' part of the gates (batch, time, 4 D), by `kernels.float32`."""

    @staticmethod
    def forward(ctx: Any, inputs_BTG: Tensor, weight_GD: Tensor, begins_BT: Tensor) -> Tensor:
        gates, cells, hidden_BTD = float32.recurrence(inputs_BTG.contiguous(), weight_GD, begins_BT)
        ctx.save_for_backward(weight_GD, begins_BT, gates, cells, hidden_BTD)
        return hidden_BTD

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        weight_GD, begins_BT, gates, cells, hidden_BTD = ctx.saved_tensors
        grad_inputs_BTG = float32.recurrence_backward(grad_BTD.contiguous(), weight_GD, begins_BT, gates, cells)
        previous_BTD = torch.zeros_like(hidden_BTD)
        previous_BTD[:, 1:] = hidden_BTD[:, :-1].masked_fill(begins_BT[:, 1:, None], 0)
        return grad_inputs_BTG, grad_inputs_BTG.flatten(0, 1).T @ previous_BTD.flatten(0, 1), None


class Backbone(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.by_kernels = False

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: LSTMState | None = None,
        lengths_B: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (batch, time, width) after the final norm; arguments as of the decoder's `Backbone`.

        Documents that share a row are taken apart and run side by side, each from an empty state.
        """
        if self.by_kernels and cache is None:  # padding may be computed too: no real token comes after it
            begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            if documents_BT is not None:
                begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
            x_BTD = self.embed_tokens(ids_BT).to(dtype)
            for layer in self.layers:
                x_BTD = layer.by_kernels(x_BTD, begins_BT)
            return self.norm(x_BTD)
        if documents_BT is not None:
            document_N, offset_N, lengths_S = _split_documents(documents_BT)
            side_by_side = ids_BT.new_zeros(len(lengths_S), int(lengths_S.max()))
            side_by_side[document_N, offset_N] = ids_BT.flatten()
            hidden_STD = self._run(side_by_side, lengths_S, None, dtype)
            return hidden_STD[document_N, offset_N].view(*ids_BT.shape, -1)
        hidden_BTD = self._run(ids_BT, lengths_B, cache, dtype)
        if cache is not None:
            cache.filled = cache.filled + (ids_BT.shape[1] if lengths_B is None else lengths_B)
        return hidden_BTD

    def _run(self, ids_BT: Tensor, lengths_B: Tensor | None, cache: LSTMState | None, dtype: torch.dtype) -> Tensor:
        lengths_B = None if lengths_B is None else lengths_B.cpu()  # where torch wants them
        x_BTD = self.embed_tokens(ids_BT).to(dtype)
        for index, layer in enumerate(self.layers):
            state = None if cache is None else (cache.hidden[index][None], cache.cells[index][None])
            x_BTD, (hidden, cells) = layer(x_BTD, lengths_B, state)
            if cache is not None:
                cache.hidden[index], cache.cells[index] = hidden[0], cells[0]
        return self.norm(x_BTD)


def _split_documents(documents_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every token the number of its document, counted through the batch, and its offset there; and the documents' lengths."""
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    document_N = begins_BT.flatten().cumsum(0) - 1
    lengths_S = torch.bincount(document_N)
    starts_S = lengths_S.cumsum(0) - lengths_S
    return document_N, torch.arange(len(document_N), device=document_N.device) - starts_S[document_N], lengths_S


class LSTM(LanguageModel):
    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config, Backbone(config), config.hidden_size)

    def use_kernels(self, context: int, dtype: torch.dtype = torch.bfloat16) -> None:
        """Also compute the recurrence by kernels, always in float32. Raises `kernels.Unavailable`."""
        super().use_kernels(context, dtype)
        float32.check_head(self.config.hidden_size)
        self.model.by_kernels = True

    def drop_kernels(self) -> None:
        super().drop_kernels()
        self.model.by_kernels = False

    def new_cache(self, batch: int, length: int, device: torch.device) -> LSTMState:
        layers, width = range(self.config.num_hidden_layers), self.config.hidden_size
        return LSTMState(
            [torch.zeros(batch, width, device=device) for _ in layers],
            [torch.zeros(batch, width, device=device) for _ in layers],
            torch.zeros(batch, dtype=torch.long, device=device),
        )


def initialise(model: LSTM, seed: int) -> None:
    """As the decoder; and the forget gate begins open, with a bias of 1 (Jozefowicz et al. 2015)."""
    base.initialise(model, seed)
    width = model.config.hidden_size
    with torch.no_grad():
        for layer in model.model.layers:
            layer.lstm.bias_ih_l0[width : 2 * width] = 1.0
