"""Shape, parameters and floating-point operations of a model, from config.json alone.

The supported architectures differ in a few switches, so one closed formula covers them all. A test
compares it with models built on torch's meta device. Reads a model directory, or one of the
configurations in `configs/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ssd_ray.artifacts.files import Json
from ssd_ray.errors import UserError, one_line

SHIPPED = Path(__file__).parent / "configs"
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gpt_oss")
EXPERT_PARALLEL = "qwen3_moe"
"""Model type whose experts training can divide among workers, proved against the reference."""
_HEAD_DIM = {"gpt_oss": 64, "qwen3": 128}
"""Head dimension of a config.json without one; for other kinds it is hidden size / heads."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Widths and counts of a decoder; memory and time are computed from them."""

    model_type: str
    hidden: int
    layers: int
    vocabulary: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sinks: bool
    experts: int
    experts_per_token: int
    expert_intermediate: int
    expert_bias: bool
    sparse_layers: int
    max_positions: int
    window: int | None
    windowed_layers: int

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.key_value_heads * self.head_dim

    @cached_property
    def parts(self) -> dict[str, int]:
        """Parameters by part of the model; a tied head counts as embedding alone."""
        return {
            "embedding": self.vocabulary * self.hidden,
            "head": 0 if self.tied else self.vocabulary * self.hidden,
            "attention": self.layers * self._attention,
            "dense MLP": (self.layers - self.sparse_layers) * self._dense_mlp,
            "experts": self.sparse_layers * self.experts * self._expert,
            "router": self.sparse_layers * self._router,
            "norms": (2 * self.layers + 1) * self.hidden,
        }

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parts.values())

    @property
    def active_parameters(self) -> int:
        """Parameters used for one token: of the experts, only those it is routed to."""
        idle = self.sparse_layers * (self.experts - self.experts_per_token) * self._expert
        return self.parameters - idle

    @property
    def largest_module(self) -> int:
        """Parameters of the largest module with weights of its own; ZeRO-3 gathers all of it."""
        # transformers fuses all experts of a layer into one module.
        return max(self.largest_matrix, self.layer_experts)

    @property
    def largest_matrix(self) -> int:
        """Parameters of the largest module other than experts."""
        return self.hidden * max(self.vocabulary, self.query, self.intermediate)

    @property
    def layer_experts(self) -> int:
        """Parameters of all experts of one layer; 0 without experts."""
        return self.experts * self._expert if self.sparse_layers else 0

    @property
    def block_parameters(self) -> int:
        """Parameters of one sparse block, router included; 0 without experts."""
        return self.experts * self._expert + self._router if self.sparse_layers else 0

    @property
    def layer_parameters(self) -> int:
        """Parameters of the largest layer."""
        mlp = self.experts * self._expert + self._router if self.sparse_layers else self._dense_mlp
        return self._attention + mlp + 2 * self.hidden

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Return the parameters of LoRA adapters of a rank on the linear layers `targets`.

        Without targets, all linear layers but the head have adapters. Experts never do.

        Raises:
            UserError: a target is not a linear layer of the model.
        """
        dense = self.layers - self.sparse_layers
        linear = {
            "q_proj": (self.layers, self.hidden + self.query),
            "k_proj": (self.layers, self.hidden + self.key_value),
            "v_proj": (self.layers, self.hidden + self.key_value),
            "o_proj": (self.layers, self.query + self.hidden),
            "gate_proj": (dense, self.hidden + self.intermediate),
            "up_proj": (dense, self.hidden + self.intermediate),
            "down_proj": (dense, self.intermediate + self.hidden),
        }
        names = [name for name, (count, _) in linear.items() if count]
        if missing := sorted(set(targets) - set(names)):
            raise UserError(
                f"train.lora.target_modules {missing[0]!r} is not a linear layer of this "
                f"{self.model_type} model below its output head: those are {', '.join(names)}"
                + ("; experts get no adapter" if self.sparse_layers else "")
            )
        return rank * sum(
            count * widths
            for name, (count, widths) in linear.items()
            if not targets or name in targets
        )

    def flops(self, prompt: int, response: int, adapters: int | None = None) -> float:
        """Return floating-point operations of one training sequence, forward and backward.

        - A multiply-add counts as two operations. Recomputation is not counted.
        - The backward pass costs two forward passes, one of them for gradients of weights.
        - With `adapters` trained parameters, the frozen matrices need no gradients of weights.
        - The head runs over the response alone.
        - Attention covers (n + 1) / 2 positions on average, or its window.
        """
        tokens = prompt + response
        matrices = (
            self.active_parameters
            - self.parts["embedding"]
            - self.parts["head"]
            - self.parts["norms"]
        )
        full = (tokens + 1) / 2
        windowed = full if self.window is None else min(full, float(self.window))
        context = (self.layers - self.windowed_layers) * full + self.windowed_layers * windowed
        weights = 2 * matrices * tokens + 2 * self.vocabulary * self.hidden * response
        attention = 4 * self.query * context * tokens
        if adapters is None:
            return 3.0 * (weights + attention)
        return 2.0 * weights + 3.0 * (attention + 2 * adapters * tokens)

    @property
    def _attention(self) -> int:
        weights = self.hidden * (self.query + 2 * self.key_value) + self.query * self.hidden
        biases = self.qkv_bias * (self.query + 2 * self.key_value) + self.output_bias * self.hidden
        return weights + biases + self.qk_norm * 2 * self.head_dim + self.sinks * self.heads

    @property
    def _dense_mlp(self) -> int:
        return 3 * self.hidden * self.intermediate + self.mlp_bias * (
            2 * self.intermediate + self.hidden
        )

    @property
    def _expert(self) -> int:
        biases = self.expert_bias * (2 * self.expert_intermediate + self.hidden)
        return 3 * self.hidden * self.expert_intermediate + biases

    @property
    def _router(self) -> int:
        return self.experts * self.hidden + self.expert_bias * self.experts


def can_share(heads: int, key_value_heads: int, workers: int) -> bool:
    """Return True if workers that share a sequence can divide its attention heads."""
    divides = key_value_heads % workers == 0 or workers % key_value_heads == 0
    return heads % workers == 0 and divides


def shipped(source: str) -> Architecture | None:
    """Return the architecture of a `model.source` with a configuration in this package."""
    for path in sorted(SHIPPED.glob("*.json")):
        entry = json.loads(path.read_text())
        if source in entry["models"]:
            return parse(entry["config"], str(path))
    return None


def quantization(source: str) -> str:
    """Return the quantization of a shipped `model.source`, such as mxfp4; "" without one."""
    for path in sorted(SHIPPED.glob("*.json")):
        entry = json.loads(path.read_text())
        if source in entry["models"]:
            return str(entry.get("quantization", ""))
    return ""


def read(directory: Path) -> Architecture:
    """Return the architecture of a model directory.

    Raises:
        UserError: config.json is damaged, lacks a number, or has an unknown model type.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a model configuration ({one_line(error)}): "
            "download the model again"
        ) from error
    return parse(config, str(path))


def parse(config: Json, where: str) -> Architecture:
    """Return the architecture described by the contents of a config.json.

    Raises:
        UserError: the model type is unknown, or a number is missing.
    """
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise UserError(
            f"{where}: the planner has no formula for model_type {kind!r}; "
            f"it knows {', '.join(KNOWN)}"
        )
    try:
        return _parse(config, str(kind))
    except KeyError as error:
        raise UserError(
            f"{where} lacks {error.args[0]!r}: give the config.json that came with the weights"
        ) from error


def _parse(config: Json, kind: str) -> Architecture:
    layers = config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    hidden = config["hidden_size"]
    is_gpt_oss = kind == "gpt_oss"
    is_moe = kind in {"gpt_oss", "qwen3_moe"}
    bias = bool(config.get("attention_bias", is_gpt_oss))
    # Absent fields have the defaults of transformers' configuration classes.
    head_dim = config.get("head_dim") or _HEAD_DIM.get(kind, hidden // heads)
    expert_width = "moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"
    window, windowed = _windows(config, kind, layers)
    return Architecture(
        model_type=kind,
        hidden=hidden,
        layers=layers,
        vocabulary=config["vocab_size"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate=config["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=True if kind == "qwen2" else bias,
        output_bias=bias and kind != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=kind in {"qwen3", "qwen3_moe"},
        sinks=is_gpt_oss,
        experts=_experts(config) if is_moe else 0,
        experts_per_token=config["num_experts_per_tok"] if is_moe else 0,
        expert_intermediate=config[expert_width] if is_moe else 0,
        expert_bias=is_gpt_oss,
        sparse_layers=_sparse_layers(config, layers) if is_moe else 0,
        max_positions=config["max_position_embeddings"],
        window=window,
        windowed_layers=windowed,
    )


def _experts(config: Json) -> int:
    return int(
        config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]
    )


def _sparse_layers(config: Json, layers: int) -> int:
    """Return the number of layers with a mixture of experts as MLP."""
    dense = config.get("mlp_only_layers") or []
    every = config.get("decoder_sparse_step", 1)
    return sum(
        index not in dense and every > 0 and (index + 1) % every == 0 for index in range(layers)
    )


def _windows(config: Json, kind: str, layers: int) -> tuple[int | None, int]:
    """Return the sliding window in tokens, and the number of layers with it."""
    window = config.get("sliding_window")
    if window is None or (kind.startswith("qwen") and not config.get("use_sliding_window", False)):
        return None, 0
    if types := config.get("layer_types"):
        return int(window), sum(each == "sliding_attention" for each in types)
    if kind in {"qwen2", "qwen3"}:
        # Layers from this one on; 28 is transformers' default.
        return int(window), max(0, layers - config.get("max_window_layers", 28))
    # gpt-oss alternates, beginning with a windowed layer; all layers of mistral are windowed.
    return int(window), (layers + 1) // 2 if kind == "gpt_oss" else layers
