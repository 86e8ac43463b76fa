"""Hugging Face folders: `config.json` and safetensors to parameters, and back.

Loading reads one kind of weight at a time, each device only its own part, straight into its sharding. Saving writes what
transformers' `AutoModelForCausalLM.from_pretrained` loads; the numbers are not touched, so a folder that was saved loads
again bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors needs)
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from epo_jax.errors import UserError
from epo_jax.hosts import arrays, exchange
from epo_jax.mesh import check_divides, param_shardings
from epo_jax.model.config import LlamaConfig
from epo_jax.model.weights import Params, Weight, declare

Index = tuple[slice, ...]
FLOATS = ("F32", "BF16", "F16", "F64")
MAX_SHARD_BYTES = 4 << 30
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt")  # fmt: skip
IGNORED = ("rotary_emb.inv_freq",)  # buffers that older files hold


# --- how a weight lies in a file ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layer's weight in Hugging Face's layout and in ours.

    name: the tensor's, without `model.layers.N.` for a layer's. kind: `plain` (as it is), `matrix` ([out,in] there, [in,out]
    here), `heads_out` ([heads*H, D] there, [D,heads,H] here) or `heads_in` ([D, heads*H] there, [heads,H,D] here).
    """

    name: str
    kind: str

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The file's shape of a weight that has shape `ours` here."""
        if self.kind == "plain":
            return ours
        if self.kind == "matrix":
            return ours[1], ours[0]
        if self.kind == "heads_out":
            return ours[1] * ours[2], ours[0]
        return ours[2], ours[0] * ours[1]

    def index(self, ours: Index, shape: tuple[int, ...]) -> Index:
        """The part of the file's tensor that holds part `ours` of our weight of `shape`; heads are never split inside."""
        if self.kind == "plain":
            return ours
        if self.kind == "matrix":
            return ours[1], ours[0]
        heads, width = (ours[1], shape[2]) if self.kind == "heads_out" else (ours[0], shape[1])
        rows = slice(heads.start * width, heads.stop * width)
        return (rows, ours[0]) if self.kind == "heads_out" else (ours[2], rows)

    def read(self, part: np.ndarray, head_dim: int) -> np.ndarray:
        """The file's part as ours."""
        if self.kind == "plain":
            return part
        if self.kind == "matrix":
            return part.T
        if self.kind == "heads_out":
            return part.reshape(-1, head_dim, part.shape[1]).transpose(2, 0, 1)
        return part.reshape(part.shape[0], -1, head_dim).transpose(1, 2, 0)

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Ours as the file's; the inverse of `read` on a whole weight."""
        if self.kind == "plain":
            return ours
        if self.kind == "matrix":
            return ours.T
        if self.kind == "heads_out":
            return ours.transpose(1, 2, 0).reshape(-1, ours.shape[0])
        return ours.transpose(2, 0, 1).reshape(ours.shape[2], -1)


LAYER_LAYOUTS = {
    "attn_norm": Layout("input_layernorm.weight", "plain"),
    "wq": Layout("self_attn.q_proj.weight", "heads_out"),
    "wk": Layout("self_attn.k_proj.weight", "heads_out"),
    "wv": Layout("self_attn.v_proj.weight", "heads_out"),
    "wo": Layout("self_attn.o_proj.weight", "heads_in"),
    "mlp_norm": Layout("post_attention_layernorm.weight", "plain"),
    "w_gate": Layout("mlp.gate_proj.weight", "matrix"),
    "w_up": Layout("mlp.up_proj.weight", "matrix"),
    "w_down": Layout("mlp.down_proj.weight", "matrix"),
}
LAYOUTS = {
    "embed": Layout("model.embed_tokens.weight", "plain"),
    "final_norm": Layout("model.norm.weight", "plain"),
    "head": Layout("lm_head.weight", "matrix"),
}


def layer_name(layer: int, layout: Layout) -> str:
    return f"model.layers.{layer}.{layout.name}"


# --- placing ------------------------------------------------------------------------------------------------------------


def place(
    config: LlamaConfig, mesh: Mesh | None, dtype: Any, read: Callable[[str, Layout, Index, tuple[int, ...]], np.ndarray]
) -> Params:
    """Parameters made weight by weight, each device's part by itself.

    read(name, layout, index, shape) gives part `index` of the weight that the file calls `name`, in our layout; `shape` is
    the whole weight's, here. Raises `UserError` if the mesh does not divide the model.
    """
    if mesh is not None:
        check_divides(config, mesh)
        shardings = param_shardings(config, mesh)
    else:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), declare(config))

    def one(weight: Weight, sharding: Any, part: Callable[[Index], np.ndarray]) -> jax.Array:
        def shard(index: Index) -> np.ndarray:
            return part(tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, weight.shape, strict=True)))

        return jax.make_array_from_callback(weight.shape, sharding, shard)

    def stacked(name: str, weight: Weight) -> Callable[[Index], np.ndarray]:
        layout, shape = LAYER_LAYOUTS[name], weight.shape[1:]

        def part(index: Index) -> np.ndarray:
            layers, rest = range(index[0].start, index[0].stop), index[1:]
            result = np.empty((len(layers), *(s.stop - s.start for s in rest)), dtype)
            for place, layer in enumerate(layers):
                result[place] = read(layer_name(layer, layout), layout, rest, shape)
            return result

        return part

    def single(name: str, weight: Weight) -> Callable[[Index], np.ndarray]:
        layout = LAYOUTS[name]
        return lambda index: read(layout.name, layout, index, weight.shape).astype(dtype)

    weights = declare(config)
    params: Params = {}
    for name, weight in weights.items():
        if name == "layers":
            params[name] = {n: one(w, shardings[name][n], stacked(n, w)) for n, w in weight.items()}
        else:
            params[name] = one(weight, shardings[name], single(name, weight))
    return params


# --- loading ------------------------------------------------------------------------------------------------------------


def load(folder: str | os.PathLike[str], mesh: Mesh | None = None, dtype: Any = np.float32) -> tuple[LlamaConfig, Params]:
    """Configuration and parameters of a Hugging Face folder (one safetensors file, or several with an index).

    Raises `UserError`, naming the file or tensor, for anything missing, truncated, of a wrong shape or type, or superfluous.
    """
    folder = pathlib.Path(folder)
    config, files = _described(folder)
    opened: dict[pathlib.Path, Any] = {}

    def read(name: str, layout: Layout, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        path = files[name]
        try:
            if path not in opened:
                opened[path] = safe_open(path, framework="numpy")
            tensor = opened[path].get_slice(name)
            found, wanted = tuple(tensor.get_shape()), layout.shape(shape)
            if found != wanted:
                raise UserError(f"the tensor {name} in {path} has shape {found}, and the model's config.json asks for {wanted}: they are not of one model.")
            if tensor.get_dtype() not in FLOATS:
                raise UserError(f"the tensor {name} in {path} is of type {tensor.get_dtype()}: only {', '.join(FLOATS)} can be read.")
            part = tensor[layout.index(index, shape)]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot read the tensor {name} from {path} ({error}): the file is damaged or cut off; get it again.") from error
        return layout.read(part, config.head_dim)

    return config, place(config, mesh, dtype, read)


def examine(folder: str | os.PathLike[str]) -> tuple[LlamaConfig, int]:
    """Configuration, and bytes on disk, of a folder whose tensors are all there by name; of the weights only headers are read.

    Raises `UserError` for what is missing or cut off. Shapes are looked at when they are loaded.
    """
    config, files = _described(pathlib.Path(folder))
    paths = sorted(set(files.values()))
    for path in paths:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"cannot read {path} ({error}): the file is damaged or cut off; get it again.") from error
    return config, sum(path.stat().st_size for path in paths)


def _described(folder: pathlib.Path) -> tuple[LlamaConfig, dict[str, pathlib.Path]]:
    config = LlamaConfig.from_hf(_read_json(folder / "config.json"))
    files = _files_of_tensors(folder)
    _check_names(config, set(files), folder)
    return config, files


def _files_of_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor name -> file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(file, str) and pathlib.PurePath(file).name == file for file in names.values()):
            raise UserError(f"{index} has no weight_map of file names in its own folder: get the file again.")
        missing = sorted({file for file in names.values() if not (folder / file).is_file()})
        if missing:
            raise UserError(f"{folder} lacks {missing[0]}, which its index names ({len(missing)} files are missing): get the rest of the weights.")
        return {name: folder / file for name, file in names.items()}
    if not single.is_file():
        raise UserError(f"no weights in {folder}: it needs model.safetensors, or several files and model.safetensors.index.json (older .bin files cannot be read: convert them).")
    try:
        with safe_open(single, framework="numpy") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {single} ({error}): the file is damaged or cut off; get it again.") from error


def _check_names(config: LlamaConfig, found: set[str], folder: pathlib.Path) -> None:
    wanted = set(_names(config))
    missing = sorted(wanted - found)
    if missing:
        raise UserError(f"the weights in {folder} lack the tensor {missing[0]} (and {len(missing) - 1} others): they are not those of its config.json.")
    allowed = wanted | ({LAYOUTS["head"].name} if config.tie_embeddings else set())
    extra = sorted(name for name in found - allowed if not name.endswith(IGNORED))
    if extra:
        raise UserError(f"the weights in {folder} hold the tensor {extra[0]} (and {len(extra) - 1} others), for which the model has no place: they are not those of its config.json.")


def _names(config: LlamaConfig) -> Iterator[str]:
    for name in declare(config):
        if name != "layers":
            yield LAYOUTS[name].name
    for layer in range(config.num_layers):
        for layout in LAYER_LAYOUTS.values():
            yield layer_name(layer, layout)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give a Hugging Face folder with config.json and safetensors.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): get the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: get the file again.")
    return content


# --- saving -------------------------------------------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    config: LlamaConfig,
    params: Params,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes `folder` (replacing what was there at once): config, safetensors in the parameters' dtype, generation config, tokenizer.

    Tensors come to the host one at a time. Of several processes all call it and the first one writes. Raises `UserError` if the disk is full or cannot be written; `folder` is then as
    it was before.
    """
    folder = pathlib.Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    if not exchange.first():
        for _ in _tensors(params, config, on_host=True):
            pass
        exchange.meet()
        return
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        dtype = str(np.dtype(params["embed"].dtype))
        _write_json(partial / "config.json", config.to_hf() | {"dtype": dtype, "torch_dtype": dtype})
        _write_tensors(partial, config, params, max_shard_bytes)
        for path in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", path)  # the library lets nobody but the owner read
        hf = config.to_hf()
        generation = {name: hf[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if hf[name] is not None}
        _write_json(partial / "generation_config.json", generation)
        for name in TOKENIZER_FILES if tokenizer_folder is not None else ():
            if (pathlib.Path(tokenizer_folder) / name).is_file():
                shutil.copyfile(pathlib.Path(tokenizer_folder) / name, partial / name)
        _put_in_place(partial, folder)
        exchange.meet()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model to {folder}: {getattr(error, 'strerror', None) or error}; make room or choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tensors(folder: pathlib.Path, config: LlamaConfig, params: Params, max_shard_bytes: int) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    sizes = {name: array.nbytes for name, array in _tensors(params, config, on_host=False)}
    for name, nbytes in sizes.items():
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    tensors = _tensors(params, config, on_host=True)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in (next(tensors) for _ in names)}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _tensors(params: Params, config: LlamaConfig, *, on_host: bool) -> Iterator[tuple[str, Any]]:
    """(name, tensor) in the file's layout, always in one order; without `on_host`, only something with its `nbytes`."""
    for name, layout in LAYOUTS.items():
        if name in params:
            yield layout.name, layout.write(arrays.on_host(params[name])) if on_host else params[name]
    for layer in range(config.num_layers):
        for name, layout in LAYER_LAYOUTS.items():
            stacked = params["layers"][name]
            part = jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)
            yield layer_name(layer, layout), layout.write(arrays.on_host(stacked[layer])) if on_host else _Bytes(part)


@dataclasses.dataclass(frozen=True)
class _Bytes:
    array: jax.ShapeDtypeStruct

    @property
    def nbytes(self) -> int:
        return self.array.size * np.dtype(self.array.dtype).itemsize


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _put_in_place(partial: pathlib.Path, folder: pathlib.Path) -> None:
    """The finished folder takes the old one's place; between the two renames the old one is beside it, whole."""
    aside = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    os.rename(partial, folder)
    shutil.rmtree(aside, ignore_errors=True)
