"""The encoder: BERT's shape (Devlin et al. 2019), written so that saving it is exporting it.

Modules carry the names of transformers' `BertModel`, `BertForMaskedLM` and `BertForQuestionAnswering`, so `state_dict()`
is a checkpoint that they read unchanged. Every token sees every other, on both sides. Words, learned positions and
segments are added up; a layer is post-norm: x = norm(x + attention(x)); x = norm(x + mlp(x)), with biases and GELU.
There is no dropout: what happens at a step of training is a function of the step.

Shape suffixes: B batch, T time, D width, H heads, C channels a head, V vocabulary.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.core.errors import UserError
from groundup.core.files import read_object, write_json
from groundup.model import card as cards
from groundup.model.base import parameter_counts
from groundup.model.card import Card
from groundup.model.description import shape_of
from groundup.model.model_folder import load_weights, save_weights
from groundup.model.weights import build
from groundup.tokenizer.wordpiece import WordPiece


@dataclass(frozen=True)
class EncoderConfig:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def as_dict(self) -> dict:
        return asdict(self)


class Linear(nn.Linear):
    """Float32 weights multiplied in the format of the input, so bfloat16 training keeps float32 parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids_BT: Tensor, segments_BT: Tensor) -> Tensor:
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        position_TD = self.position_embeddings(positions_T)
        return self.LayerNorm(self.word_embeddings(ids_BT) + self.token_type_embeddings(segments_BT) + position_TD)


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTD: Tensor, visible: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTC, k_BHTC, v_BHTC = (
            projection(x_BTD).view(B, T, self.heads, -1).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        out_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, attn_mask=visible)
        return out_BHTC.transpose(1, 2).reshape(B, T, D)


class ResidualNorm(nn.Module):
    """The end of each half of a layer: `BertSelfOutput` and `BertOutput`."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualNorm(config.hidden_size, config)

    def forward(self, x_BTD: Tensor, visible: Tensor) -> Tensor:
        return self.output(self.self(x_BTD, visible), x_BTD)


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualNorm(config.intermediate_size, config)

    def forward(self, x_BTD: Tensor, visible: Tensor) -> Tensor:
        x_BTD = self.attention(x_BTD, visible)
        return self.output(self.intermediate(x_BTD), x_BTD)


class Layers(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x_BTD: Tensor, visible: Tensor) -> Tensor:
        for layer in self.layer:
            x_BTD = layer(x_BTD, visible)
        return x_BTD


class Encoder(nn.Module):
    """Token ids to hidden states; `BertModel` without its pooler."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)

    def forward(
        self,
        ids_BT: Tensor,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (batch, time, width). `mask_BT`: 1 on tokens that the others may see, 0 on padding.

        A segment (batch, time) is 0 or 1: question or context, first text or second; all 0 when not given.
        """
        x_BTD = self.embeddings(ids_BT, torch.zeros_like(ids_BT) if segments_BT is None else segments_BT)
        visible = None if mask_BT is None else mask_BT.bool()[:, None, None, :]
        return self.encoder(x_BTD.to(dtype), visible)


class Transform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class Head(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class WithHead(nn.Module):
    """BERT and what a head makes of its hidden states."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Encoder(config)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises UserError when the folder is not a complete BERT with this head."""
        config = load_config(folder)
        model = build(cls, config, folder, lambda: config)
        load_weights(model, folder)
        return model


class MaskedLanguageModel(WithHead):
    """Logits of the token behind each [MASK]; `BertForMaskedLM`, its output tied to the word embeddings."""

    architecture = "BertForMaskedLM"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.cls = Head(config)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states (..., width), in any number of dimensions: (..., vocabulary)."""
        head = self.cls.predictions
        words = self.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(hidden), words.to(hidden.dtype), head.bias.to(hidden.dtype))

    def forward(
        self,
        ids_BT: Tensor,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Logits (batch, time, vocabulary)."""
        return self.logits(self.bert(ids_BT, segments_BT, mask_BT, dtype))


class SpanReader(WithHead):
    """Where an answer begins and where it ends; `BertForQuestionAnswering`."""

    architecture = "BertForQuestionAnswering"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.qa_outputs = Linear(config.hidden_size, 2)

    def forward(
        self,
        ids_BT: Tensor,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Logits (batch, time, 2), float32: of the first token of the answer, and of the last."""
        return self.qa_outputs(self.bert(ids_BT, segments_BT, mask_BT, dtype)).float()


def initialise(model: nn.Module, seed: int) -> None:
    """Random matrices of variance 1/fan-in; from the start a token looks at its neighbours and at copies of itself.

    Queries begin equal to keys, and positions as sinusoids of short range (after Trockman & Kolter 2023, "mimetic"
    initialisation). Measured on a task: find six given tokens among 40 random ones, with shared tokens marked. An encoder of
    width 64 and depth 2 is at 0.5 nats after 100 steps of 32; from BERT's start (normal, deviation 0.02) it is at 3.3 after
    150, as it is with positions of the usual range. Chance is 3.5.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(float(name.endswith("LayerNorm.weight")))
            elif name.endswith("position_embeddings.weight"):
                parameter.copy_(_sinusoids(*parameter.shape) * 0.2)
            else:
                deviation = 0.1 if name.endswith("embeddings.weight") else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.key.weight.copy_(module.query.weight)


def _sinusoids(length: int, width: int) -> Tensor:
    """(length, width), of mean square one (Vaswani et al. 2017, whose base of 10,000 makes neighbours hardly differ)."""
    angles = torch.arange(length)[:, None] * 30.0 ** (-torch.arange(0, width, 2) / width)
    return 2**0.5 * torch.cat((angles.sin(), angles.cos()), dim=1)


def save(folder: Path, model: MaskedLanguageModel | SpanReader, tokenizer: WordPiece) -> None:
    """Write a model with its tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "architectures": [model.architecture],
        "model_type": "bert",
        **model.config.as_dict(),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "tie_word_embeddings": True,
        # transformers 5 reads dtype, earlier releases torch_dtype.
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", description)
    tokenizer.save(folder, model_max_length=model.config.max_position_embeddings)
    task = "Trained to find the answer to a question in a text." if isinstance(model, SpanReader) else "Trained to fill in masks."
    cards.write(folder, description, parameter_counts(model)["total"], False, Card(task), {})
    save_weights(model, folder)


def load_config(folder: Path) -> EncoderConfig:
    """Raises UserError when the folder does not hold a BERT that this file computes."""
    description = read_object(folder / "config.json")
    if description.get("model_type") != "bert":
        raise UserError(f"{folder}: model_type is {description.get('model_type')!r}; an encoder is bert")
    unsupported = {
        "hidden_act": description.get("hidden_act", "gelu") != "gelu",
        "position_embedding_type": description.get("position_embedding_type", "absolute") != "absolute",
        "is_decoder": description.get("is_decoder", False),
    }
    if names := [name for name, is_unsupported in unsupported.items() if is_unsupported]:
        raise UserError(f"{folder}/config.json: {', '.join(names)} is not what groundup's encoder computes")
    return shape_of(EncoderConfig, description, folder / "config.json")
