"""The decoder: Qwen3's shape (Yang et al. 2025) and its relatives, written so that saving one is exporting it.

Modules carry the names of transformers' `Qwen3ForCausalLM`, so `state_dict()` is a checkpoint that it reads unchanged.
A block is pre-norm: x += attention(rms_norm(x)); x += mlp(rms_norm(x)), with rotary positions, grouped-query attention,
RMS-normalised queries and keys, and a gated (SwiGLU) MLP; no biases.

The relatives differ little: Llama and Mixtral do not normalise queries and keys, nor does Qwen2.5 (`qwen2`), which adds
a bias to them and the values; Qwen3-MoE and Mixtral have a mixture of experts for MLP. We train `qwen3` and `qwen3_moe`;
the others are for published models to be continued.

Shape suffixes: B batch, T time, D width, H query heads, K key/value heads, C channels a head, S keys seen, V vocabulary.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup import kernels
from groundup.kernels import float32, workspace
from groundup.model import float32_layers, native_layers
from groundup.model.base import LanguageModel, Linear
from groundup.model.hidden_states import hidden_states
from groundup.model.moe import MixtureOfExperts
from groundup.model.origin import WithOrigin
from groundup.model.rotary import attention_scale, rope_frequencies

# Tokens of a row up to which attention in bfloat16 on a processor is trained by plain products: PyTorch's own backward takes
# 32 ms of one core's time for 16 rows of 256 tokens (4 heads of 64), these 12; at 1,024 tokens they are level.
MAX_PLAIN_ATTENTION = 512


@dataclass(frozen=True)
class DecoderConfig(WithOrigin):
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    model_type: str = "qwen3"
    rope_scaling: dict[str, Any] | None = None  # as config.json has it; see `rotary`
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0  # of one expert
    norm_topk_prob: bool = True

    def as_dict(self) -> dict:
        """What config.json holds: of the experts and of stretched positions only where there are any."""
        sparse = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
        absent = (*(() if self.num_experts else sparse), *(() if self.rope_scaling else ("rope_scaling",)))
        return {name: value for name, value in self.sizes().items() if name not in absent}


def shape_for(depth: int, vocabulary: int, context: int) -> tuple[DecoderConfig, list[str]]:
    """All sizes from the depth alone, as by nanochat's `--depth`, with the reason of each."""
    width, head_dim = 64 * depth, 64
    heads = width // head_dim
    key_value_heads = heads // 2 if heads % 2 == 0 else heads
    config = DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        intermediate_size=3 * width,
        max_position_embeddings=context,
    )
    reasons = [
        f"width {width} = 64 x depth: width and depth grow together (nanochat)",
        f"heads {heads} of {head_dim} channels; {key_value_heads} key/value heads: half, as Qwen3-0.6B",
        f"MLP {config.intermediate_size} = 3 x width: Qwen3's ratio",
        "embedding and head untied: each has its own learning rate (modded-nanogpt, record 8)",
    ]
    return config, reasons


def with_experts(config: DecoderConfig, experts: int, per_token: int) -> tuple[DecoderConfig, list[str]]:
    """The Qwen3-MoE that has as many active parameters as the dense `config`, router apart, with the reason of each size.

    Raises ValueError when `per_token` does not divide the MLP's width or is more than `experts`.
    """
    inner, remainder = divmod(config.intermediate_size, per_token)
    if remainder or per_token > experts:
        raise ValueError(f"{per_token} of {experts} experts cannot share an MLP of {config.intermediate_size}")
    sparse = replace(
        config,
        model_type="qwen3_moe",
        num_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=inner,
    )
    return sparse, [
        f"{experts} experts of {inner}, {per_token} a token: together as wide as the dense MLP (DeepSeekMoE, Dai et al. 2024)",
        "the weights of a token's experts add up to one: as Qwen3-30B-A3B; no shared expert: neither has it",
    ]


def fused_linear(x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
    """The outputs of all layers for x (B, T, D), by one product, so that x and its gradient pass memory once.

    For a single token, as in generation, joining the weights would cost more than it saves.
    """
    if x.shape[1] == 1:
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]).to(x.dtype)
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


class _Normalised(torch.autograd.Function):
    """x / rms(x) * weight with the gradient written out: 2 to 3 times faster than autograd's, and keeps only x.

    With n = x / rms(x) and g the gradient of the output: dx = (g * weight - n * mean(g * weight * n)) / rms(x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normalised, grad32 = x.float() * inverse, grad.float()
        products = grad32 * normalised
        means = (products @ weight)[..., None] / x.shape[-1]
        grad_x = (grad32 * weight).sub_(normalised.mul_(means)).mul_(inverse)
        return grad_x.to(x.dtype), products.flatten(0, -2).sum(0), None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _Normalised.apply(x, self.weight, self.eps)


@dataclass
class KeyValueCache:
    """Keys and values of every layer, with room for `length` tokens a row; rows fill up independently.

    `keys[layer]`, `values[layer]`: (batch, key/value heads, length, channels). `filled`: (batch,) tokens so far.
    """

    keys: list[Tensor]
    values: list[Tensor]
    filled: Tensor
    used: int = 0  # slots that any row has filled: attention looks no further

    @staticmethod
    def empty(config: DecoderConfig, batch: int, length: int, device: torch.device) -> "KeyValueCache":
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        return KeyValueCache(
            [torch.zeros(shape, device=device) for _ in range(config.num_hidden_layers)],
            [torch.zeros(shape, device=device) for _ in range(config.num_hidden_layers)],
            torch.zeros(batch, dtype=torch.long, device=device),
        )

    def select(self, rows: Tensor) -> None:
        """Keep only these rows: finished sequences stop costing time."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.filled = self.filled[rows]


@dataclass
class Positions:
    """What attention needs to know of the tokens' positions, computed once for all layers."""

    cos: Tensor  # (B, 1, T, C)
    sin: Tensor
    visible: Tensor | None  # (B, 1, T, S) boolean; None: causal, nothing else
    slots: Tensor | None = field(default=None)  # (B, T): where in the cache each token goes
    bias: Tensor | None = None  # `visible` as what to add to scores (B, 1, T, S), for attention by plain products


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.channels = config.head_dim
        bias = config.model_type == "qwen2"
        self.q_proj = Linear(config.hidden_size, self.heads * self.channels, bias)
        self.k_proj = Linear(config.hidden_size, self.key_value_heads * self.channels, bias)
        self.v_proj = Linear(config.hidden_size, self.key_value_heads * self.channels, bias)
        self.o_proj = Linear(self.heads * self.channels, config.hidden_size)
        normalised = config.model_type in ("qwen3", "qwen3_moe")
        self.q_norm = RMSNorm(self.channels, config.rms_norm_eps) if normalised else nn.Identity()
        self.k_norm = RMSNorm(self.channels, config.rms_norm_eps) if normalised else nn.Identity()

    def forward(self, x_BTD: Tensor, positions: Positions, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        B, T, _ = x_BTD.shape
        projected = fused_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        q_BTHC, k_BTKC, v_BTKC = (part.unflatten(-1, (-1, self.channels)) for part in projected)
        q_BHTC, k_BKTC = self.q_norm(q_BTHC).transpose(1, 2), self.k_norm(k_BTKC).transpose(1, 2)
        v_BKTC = v_BTKC.transpose(1, 2)
        q_BHTC, k_BKTC = rotate(q_BHTC, positions), rotate(k_BKTC, positions)
        if cache is not None and positions.slots is not None:
            rows = torch.arange(B, device=x_BTD.device)[:, None]
            keys, values = cache
            keys[rows, :, positions.slots] = k_BKTC.transpose(1, 2).to(keys.dtype)
            values[rows, :, positions.slots] = v_BKTC.transpose(1, 2).to(values.dtype)
            used = positions.visible.shape[-1]
            k_BKTC, v_BKTC = keys[:, :, :used].to(q_BHTC.dtype), values[:, :, :used].to(q_BHTC.dtype)
        if positions.bias is not None:
            out_BHTC = attend(q_BHTC, k_BKTC, v_BKTC, positions.bias)
        else:
            out_BHTC = F.scaled_dot_product_attention(
                q_BHTC,
                k_BKTC,
                v_BKTC,
                attn_mask=positions.visible,
                is_causal=positions.visible is None,
                enable_gqa=self.heads != self.key_value_heads,
            )
        return self.o_proj(out_BHTC.transpose(1, 2).reshape(B, T, -1))


def attend(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, bias: Tensor) -> Tensor:
    """Causal attention by plain products; the earlier half of the queries looks at the earlier half of the keys only."""
    T = q_BHTC.shape[2]
    halves = ((0, T // 2), (T // 2, T)) if T >= 256 else ((0, T),)
    return torch.cat(
        [
            _attend(q_BHTC[:, :, start:end], k_BKTC[:, :, :end], v_BKTC[:, :, :end], bias[:, :, None, start:end, :end])
            for start, end in halves
        ],
        dim=2,
    )


def _attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, bias: Tensor) -> Tensor:
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    # The queries that share keys are rows of one matrix; N is B x K.
    q_NRC = (q_BHTC * C**-0.5).reshape(B * K, H // K * T, C)
    k_NSC, v_NSC = k_BKSC.reshape(B * K, S, C), v_BKSC.reshape(B * K, S, C)
    scores = torch.bmm(q_NRC, k_NSC.mT).view(B, K, H // K, T, S) + bias
    return torch.bmm(scores.softmax(dim=-1).view(B * K, -1, S), v_NSC).view(B, H, T, C)


def rotate(x_BHTC: Tensor, positions: Positions) -> Tensor:
    """Rotary positions (Su et al. 2021), halves paired as in Llama and Qwen."""
    return _Rotated.apply(x_BHTC, positions.cos.to(x_BHTC.dtype), positions.sin.to(x_BHTC.dtype))


class _Rotated(torch.autograd.Function):
    """Written out, since the gradient of a rotation is the rotation back: half of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x_BHTC, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[..., : first.shape[-1]], sin[..., : first.shape[-1]]
    rotated = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    return torch.cat(rotated, dim=-1)


class _Gated(torch.autograd.Function):
    """silu(gate) * up; the gradient is computed from these two and one exponential, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        return grad * up * torch.addcmul(sigmoid, silu, 1 - sigmoid), grad * silu


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = fused_linear(x, self.gate_proj, self.up_proj)
        return self.down_proj(_Gated.apply(gate, up))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_name = "block_sparse_moe" if config.model_type == "mixtral" else "mlp"
        self.add_module(self.mlp_name, mixture_of_experts(config) if config.num_experts else MLP(config))

    def forward(self, x_BTD: Tensor, positions: Positions, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), positions, cache)
        mlp = getattr(self, self.mlp_name)
        return x_BTD + mlp(self.post_attention_layernorm(x_BTD))


def mixture_of_experts(config: DecoderConfig) -> MixtureOfExperts:
    return MixtureOfExperts(
        config.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        normalise=config.norm_topk_prob,
        names=("w1", "w3", "w2") if config.model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj"),
    )


class Backbone(nn.Module):
    """Token ids to hidden states; `Qwen3Model` in transformers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.compiled = False
        self.kernel_dtype: torch.dtype | None = None
        self.attention_by_kernels = False  # of a mixture, in bfloat16

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        lengths_B: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Hidden states (batch, time, width) after the final norm, of ids or of embeddings (batch, time, width).

        `documents_BT` (batch, time), integers: a token sees only earlier tokens of its own document number; so several
        documents share a row. With `cache`, rows continue from `cache.filled`, and `lengths_B` (batch,) is the number of
        real tokens in each row; the rest is padding on the right.
        """
        T = ids_BT.shape[1]
        plain = cache is None and not ids_BT.is_floating_point()
        if self.kernel_dtype == dtype and plain:
            if dtype == torch.float32:
                rows = float32_layers.whole_rows(ids_BT, documents_BT)
                return float32_layers.hidden_states(self, rows).unflatten(0, ids_BT.shape)
            if T % kernels.BLOCK == 0:
                return native_layers.by_rows(self, ids_BT, documents_BT)
        if self.attention_by_kernels and plain and dtype == torch.bfloat16 and T % kernels.BLOCK == 0:
            return native_layers.mixture_by_rows(self, ids_BT, documents_BT)
        x_BTD = (ids_BT if ids_BT.is_floating_point() else self.embed_tokens(ids_BT)).to(dtype)
        if cache is None:
            positions = self.rotary_positions(torch.arange(T, device=ids_BT.device)[None])
            if documents_BT is not None:
                same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
                positions.visible = same & _causal(T, ids_BT.device)
            if dtype == torch.bfloat16 and T <= MAX_PLAIN_ATTENTION and ids_BT.device.type == "cpu":
                visible = _causal(T, ids_BT.device)[None, None] if positions.visible is None else positions.visible
                positions.bias = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
        else:
            slots_BT = cache.filled[:, None] + torch.arange(T, device=ids_BT.device)
            positions = self.rotary_positions(slots_BT)
            positions.slots = slots_BT
            cache.used = min(cache.used + T, cache.keys[0].shape[2])
            seen_S = torch.arange(cache.used, device=ids_BT.device)
            positions.visible = seen_S <= slots_BT[:, None, :, None]
            cache.filled = cache.filled + (T if lengths_B is None else lengths_B)
        return self._blocks(x_BTD, positions, cache)

    def _blocks(self, x_BTD: Tensor, positions: Positions, cache: KeyValueCache | None) -> Tensor:
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, positions, (cache.keys[index], cache.values[index]) if cache else None)
        return self.norm(x_BTD)

    def use_kernels(self, context: int, dtype: torch.dtype) -> None:
        """Compute the layers in `dtype` by `kernels`. Raises `kernels.Unavailable`."""
        if dtype == torch.float32:
            float32_layers.check(self.config)
        else:
            native_layers.check(self.config, context)
        self.kernel_dtype = dtype

    def drop_kernels(self) -> None:
        """Compute the layers by PyTorch again, and free the kernels' memory."""
        self.kernel_dtype, self.attention_by_kernels = None, False
        workspace.release()

    def compile(self) -> None:
        """Compile all but the embedding: compiled, its gradient adds in no fixed order, and no two runs would be the same."""
        self._blocks = torch.compile(self._blocks)
        self.compiled = True

    def rotary_positions(self, positions_BT: Tensor) -> Positions:
        config = self.config
        frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, positions_BT.device)
        angles = positions_BT[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        factor = attention_scale(config.rope_scaling)
        return Positions(angles.cos() * factor, angles.sin() * factor, None)


def _causal(T: int, device: torch.device) -> Tensor:
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


class Decoder(LanguageModel):
    """A causal transformer; `Qwen3ForCausalLM` and its relatives in transformers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, Backbone(config), config.hidden_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def use_kernels(self, context: int, dtype: torch.dtype = torch.bfloat16) -> None:
        if not self.config.num_experts:
            self.model.use_kernels(context, dtype)
        super().use_kernels(context, dtype)
        if self.config.num_experts:
            self._experts_by_kernels(context, dtype)

    def _experts_by_kernels(self, context: int, dtype: torch.dtype) -> None:
        """Use the kernels that there are for a mixture: of the experts, and in bfloat16 of attention."""
        if dtype == torch.float32:
            if not float32.can_run_experts(self.config.hidden_size, self.config.moe_intermediate_size):
                return
        else:
            try:
                native_layers.check(self.config, context)
            except kernels.Unavailable:
                return
            self.model.attention_by_kernels = True
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                module.kernel_dtype = dtype

    def drop_kernels(self) -> None:
        self.model.drop_kernels()
        super().drop_kernels()
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                module.kernel_dtype = None

    def new_cache(self, batch: int, length: int, device: torch.device) -> KeyValueCache:
        return KeyValueCache.empty(self.config, batch, length, device)


class RewardModel(nn.Module):
    """A backbone, the decoder's if none is given, with one score per token: the reward model, and PPO's value function.

    In transformers `Qwen3ForSequenceClassification` with `num_labels=1`, which reads the number at the last token.
    """

    def __init__(self, config: Any, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config) if backbone is None else backbone
        self.score = Linear(config.hidden_size, 1)

    def use_kernels(self, context: int, dtype: torch.dtype) -> None:
        """See `Backbone.use_kernels`. Raises `kernels.Unavailable`."""
        if not isinstance(self.model, Backbone):
            raise kernels.Unavailable(f"they know qwen3 only, not {self.config.model_type}")
        self.model.use_kernels(context, dtype)

    def drop_kernels(self) -> None:
        if isinstance(self.model, Backbone):
            self.model.drop_kernels()

    def forward(self, ids_BT: Tensor, dtype: torch.dtype = torch.float32, wanted_BT: Tensor | None = None) -> Tensor:
        """Scores (batch, time), float32. `wanted_BT`: where it is zero the score is zero and not computed."""
        if wanted_BT is None:
            return self.score(self.model(ids_BT, dtype=dtype)).float().squeeze(-1)
        indices_M = wanted_BT.flatten().nonzero().squeeze(1)
        scores = self.score(hidden_states(self.model, ids_BT, indices_M, dtype)).float().squeeze(-1)
        return scores.new_zeros(ids_BT.numel()).index_put((indices_M,), scores).view(ids_BT.shape)
