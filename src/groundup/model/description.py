"""A decoder's config.json, written for every library that we know of, and read whichever library wrote it.

`config.json` is where a model says what it computes. What our decoder does not compute is refused by name: a model that loads
and answers a little wrongly is worse than one that does not load.
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from groundup.core.errors import UserError
from groundup.model.decoder import DecoderConfig
from groundup.model.rotary import KINDS
from groundup.model.weights import shown

# By model_type, the prefix of transformers' class names.
FAMILIES = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "qwen2": "Qwen2", "llama": "Llama", "mixtral": "Mixtral"}
KINDS_OF_VALUE = {int: "a whole number above zero", float: "a number above zero", bool: "true or false", str: "a string"}
# Upper limits, beyond any model: sizes are below 2^31, and float32 ends at 3.4e38.
LARGEST = {int: 2**31 - 1, float: 1e30}
Shape = TypeVar("Shape")
EXPERT_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")


def describe(config: DecoderConfig) -> dict[str, Any]:
    """The entries of config.json that follow from sizes and family."""
    description = {
        **config.as_dict(),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        # transformers 5 reads rope_parameters and dtype; earlier releases and other tools rope_theta and torch_dtype.
        "rope_parameters": {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta},
        "dtype": config.origin.dtype,
        "torch_dtype": config.origin.dtype,
    }
    if config.model_type == "llama":
        description["mlp_bias"] = False
    if config.num_experts:
        description["num_local_experts"] = config.num_experts  # Mixtral's name; transformers 5 has it for Qwen3-MoE too
    if config.model_type == "mixtral":
        description |= {"sliding_window": None, "intermediate_size": config.moe_intermediate_size}
    if config.model_type == "qwen3_moe":
        description |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    return description


def shape_of(kind: type[Shape], entries: dict[str, Any], path: Path) -> Shape:
    """A dataclass of sizes from the entries of a config.json.

    Raises UserError, naming `path`, for the first that is missing or of another type.
    """
    values = {}
    for field in fields(kind):
        if field.name == "origin":  # no size
            continue
        if field.name not in entries:
            if field.default is MISSING:
                raise UserError(f"{path}: {field.name} is missing")
            continue
        values[field.name] = value = entries[field.name]
        if field.type in KINDS_OF_VALUE and value != field.default:
            _check(field.name, value, field.type, path)
    return kind(**values)


def _check(name: str, value: Any, kind: type, path: Path) -> None:
    is_number = kind in (int, float)
    is_valid = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not is_valid or (is_number and not 0 < value <= LARGEST[kind]):
        limit = f", at most {LARGEST[kind]:g}" if is_valid and value > 0 else ""
        raise UserError(f"{path}: {name} is {shown(value)}; it must be {KINDS_OF_VALUE[kind]}{limit}")


def read_config(description: dict[str, Any], path: Path) -> DecoderConfig:
    """The shape that a config.json describes. Raises UserError, naming `path`, for one that we do not compute."""
    kind = description.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{path}: model_type is {shown(kind)}; decoders that groundup computes are {', '.join(FAMILIES)}")
    entries = {name: value for name, value in description.items() if value is not None}
    for name in ("max_position_embeddings", "hidden_size", "num_attention_heads", "sliding_window"):
        if name in entries:
            _check(name, entries[name], int, path)
    context, window = entries.get("max_position_embeddings", 0), entries.get("sliding_window")
    if kind != "mixtral":  # Mixtral has no such switch; the others have 4,096 where config.json does not say
        window = description.get("sliding_window", 4096) if entries.get("use_sliding_window") else None
    windowed = window is not None and window < context
    unsupported = {
        "hidden_act": entries.get("hidden_act", "silu") != "silu",
        "attention_bias": entries.get("attention_bias", False),
        "mlp_bias": entries.get("mlp_bias", False),
        "sliding_window": windowed,
        "decoder_sparse_step": entries.get("decoder_sparse_step", 1) != 1,
        "mlp_only_layers": entries.get("mlp_only_layers", []) != [],
        "quantization_config": "quantization_config" in entries,
        "partial_rotary_factor": entries.get("partial_rotary_factor", 1) != 1,
    }
    if names := [name for name, is_unsupported in unsupported.items() if is_unsupported]:
        raise UserError(f"{path}: {', '.join(names)} is not what groundup's decoder computes")
    entries["rope_theta"], entries["rope_scaling"] = _rope(entries, path)
    entries.setdefault("tie_word_embeddings", False)
    if kind not in ("qwen3", "qwen3_moe") and {"hidden_size", "num_attention_heads"} <= entries.keys():
        entries.setdefault("head_dim", entries["hidden_size"] // entries["num_attention_heads"])
        entries.setdefault("num_key_value_heads", entries["num_attention_heads"])
    if "num_local_experts" in entries:
        entries["num_experts"] = entries["num_local_experts"]
    if kind == "mixtral":
        entries |= {"moe_intermediate_size": entries.get("intermediate_size"), "norm_topk_prob": True}
    if kind == "qwen3_moe":
        entries.setdefault("norm_topk_prob", False)
    sparse = kind in ("qwen3_moe", "mixtral")
    needed = [field.name for field in fields(DecoderConfig) if field.name not in ("origin", *(() if sparse else EXPERT_FIELDS))]
    if missing := [name for name in needed if name not in entries]:
        raise UserError(f"{path}: {missing[0]} is missing")
    config = shape_of(DecoderConfig, {name: entries[name] for name in needed}, path)
    if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
        raise UserError(
            f"{path}: {config.num_attention_heads} heads of {config.head_dim} channels, {config.num_key_value_heads} of keys "
            "and values: the channels must be even, the heads a multiple of those of keys and values"
        )
    if config.num_experts_per_tok > config.num_experts:
        raise UserError(f"{path}: {config.num_experts_per_tok} experts a token, of {config.num_experts}")
    return config


def _rope(entries: dict[str, Any], path: Path) -> tuple[float, dict[str, Any] | None]:
    """`rope_theta` and the scaling of positions: `rope_parameters` since transformers 5, two entries before it."""
    # Where both are given, transformers uses rope_scaling.
    scaling = entries.get("rope_scaling") or entries.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"{path}: rope_parameters or rope_scaling is {shown(scaling)}; it must be an object")
    rope = {"rope_theta": entries.get("rope_theta"), **scaling}
    kind = rope.pop("rope_type", None) or rope.pop("type", "default")
    theta = rope.pop("rope_theta")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: rope_type is {shown(kind)}; what groundup computes is {', '.join(KINDS)}")
    rope = {name: value for name, value in rope.items() if value is not None and name != "type"}
    needed, allowed = KINDS[kind]
    if "original_max_position_embeddings" in needed:  # Phi's config.json has it at the top level
        top_level = entries.get("original_max_position_embeddings")
        rope = {"original_max_position_embeddings": entries.get("max_position_embeddings"), **rope}
        rope = {name: value for name, value in rope.items() if value is not None}
        rope |= {} if top_level is None else {"original_max_position_embeddings": top_level}
    if unknown := sorted(rope.keys() - needed - allowed):
        raise UserError(f"{path}: {unknown[0][:80]} of rope_type {kind} is not what groundup's decoder computes")
    if missing := sorted(needed - rope.keys()):
        raise UserError(f"{path}: {missing[0]} of rope_type {kind} is missing")
    for name, value in rope.items():
        _check(name, value, bool if name == "truncate" else float, path)
    if theta is not None:
        _check("rope_theta", theta, float, path)
    if theta is None and entries["model_type"] != "llama":
        raise UserError(f"{path}: rope_theta is missing")
    if theta is not None and theta <= 1:  # the first channels would turn slowest
        raise UserError(f"{path}: rope_theta is {shown(theta)}; it must be above 1")
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise UserError(f"{path}: low_freq_factor of rope_type llama3 must be below high_freq_factor")
    # The first Llamas' config.json has no rope_theta.
    return 10_000.0 if theta is None else theta, None if kind == "default" else {"rope_type": kind, **rope}
