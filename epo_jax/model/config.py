"""What a Llama-architecture model is: its sizes, its rope, and how Hugging Face spells them in `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from epo_jax.errors import UserError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (rope type `llama3`): long waves are stretched by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one model. Frozen and hashable, so that it can be a static argument of `jax.jit`."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H, not always D / N
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    sliding_window: int | None = None  # a token sees only the last `sliding_window` positions, itself included
    max_positions: int = 4096
    architecture: str = "llama"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"the model's {name} is {getattr(self, name)!r}: it must be a positive whole number.")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"the model has {self.num_heads} query heads and {self.num_kv_heads} key/value heads: "
                "the first must be a multiple of the second."
            )
        if self.head_dim % 2:
            raise UserError(f"the model's head_dim is {self.head_dim}: rotary embeddings need an even number.")
        if self.architecture not in ARCHITECTURES.values():
            raise UserError(f"the architecture {self.architecture!r} is not supported: use one of {_supported()}.")

    @property
    def num_params(self) -> int:
        """The number of weights; a tied output head counts once."""
        d, f, h = self.hidden_size, self.intermediate_size, self.head_dim
        attention = 2 * d * self.num_heads * h + 2 * d * self.num_kv_heads * h
        tables = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return tables + self.num_layers * (attention + 3 * d * f + 2 * d) + d

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> LlamaConfig:
        """Reads a Hugging Face `config.json`, with the old or the new spelling of rope; `UserError` for what we cannot run."""
        architecture = _architecture(config)
        _refuse_variants(config)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if name not in config:
                raise UserError(f"the model's config.json has no {name!r}: it is not a complete Llama or Mistral configuration.")
            if not isinstance(config[name], int) or config[name] < 1:
                raise UserError(f"the model's config.json sets {name} to {config[name]!r}: it must be a positive whole number.")
        rope_theta, rope_scaling = _rope_from_hf(config)
        num_heads = config["num_attention_heads"]
        # Mistral's own default is 8 key/value heads, Llama's is one for each query head.
        num_kv_heads = config.get("num_key_value_heads", 8 if architecture == "mistral" else None)
        eos = config.get("eos_token_id", 2)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            sliding_window=config.get("sliding_window", 4096) if architecture == "mistral" else None,
            max_positions=config.get("max_position_embeddings", 131072 if architecture == "mistral" else 2048),
            architecture=architecture,
            bos_token_id=config.get("bos_token_id", 1),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,),
            pad_token_id=config.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that both transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) read."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": "llama3"} | dataclasses.asdict(self.rope_scaling)
        eos = self.eos_token_ids
        config: dict[str, Any] = {
            "architectures": [next(name for name, kind in ARCHITECTURES.items() if kind == self.architecture)],
            "model_type": self.architecture,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": {"rope_type": "default"} | (scaling or {}) | {"rope_theta": self.rope_theta},
            "bos_token_id": self.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
            "pad_token_id": self.pad_token_id,
            "attention_dropout": 0.0,
        }
        if self.architecture == "llama":
            config |= {"attention_bias": False, "mlp_bias": False}
        else:
            config |= {"sliding_window": self.sliding_window}
        return config


def _supported() -> str:
    return " or ".join(ARCHITECTURES)


def _architecture(config: dict[str, Any]) -> str:
    """`llama` or `mistral`, from `architectures` or, where that is absent, from `model_type`."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and config.get("model_type") in ARCHITECTURES.values():
        return config["model_type"]
    found = ", ".join(names) or config.get("model_type") or "no architecture at all"
    raise UserError(f"the model's config.json names {found}, which is not supported: use a model whose architecture is {_supported()}.")


def _refuse_variants(config: dict[str, Any]) -> None:
    """Raises for switches that would change the computation and that we do not have."""
    plain = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0)}
    for name, allowed in plain.items():
        if config.get(name) is not None and config[name] not in allowed:
            raise UserError(f"the model's config.json sets {name} to {config[name]!r}: only {allowed[0]!r} is supported; choose another model.")
    if config.get("quantization_config"):
        raise UserError("the model's weights are quantised (config.json has quantization_config): use the unquantised model, or its GGUF file.")


def _rope_from_hf(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    parameters = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise UserError("the model rotates only a part of each head (partial_rotary_factor): this is not supported; choose another model.")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"the model's rope scaling is of type {kind!r}: only 'default' and 'llama3' are supported; choose another model.")
    fields = [field.name for field in dataclasses.fields(RopeScaling)]
    missing = [name for name in fields if name not in parameters]
    if missing:
        raise UserError(f"the model's config.json scales rope by 'llama3' but does not give {', '.join(missing)}: get a complete config.json.")
    return theta, RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
    )
