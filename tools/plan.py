"""What a run will need on accelerators that are not here: its programs, compiled ahead of time.

    python tools/plan.py --config=configs/alfshop.py:llama3_8b --model=llama-3-8b --topology=v5p:2x2x1
    python tools/plan.py --config=… --topology=v5e-16 --mesh=fsdp=8,tensor=2 --programs=pass,update
    python tools/plan.py --config=… --topology=8xh100                     GPUs: an estimate
    python tools/plan.py --table                                          fills docs/scaling.md, cell by cell; goes on where it stopped

It prints the bytes that a chip holds at the worst moment of each program, the arithmetic, what chips send each other, and whether it fits. For
TPUs the compiler is the TPU's own; it needs no TPU (pip install "jax[tpu]" brings the libtpu that fits jaxlib). For GPUs, and without libtpu, XLA's
CPU compiler stands in with simulated devices, and plain attention for the fused kernels: it needs more temporary memory, so this is an estimate, and
marked as one.

--model names a file of configs/models/, or a Hugging Face config.json; without it the configuration's own weights say. Where the mesh does
not divide config.learn.rows, rows are rounded up. Programs: pass (forward and backward of `rows` sequences of config.learn.max_length
tokens), update (AdamW), decode (all slots, config.rollout.max_context tokens in each). Learning is over all chips; each process plays on its own, the
four of a machine where a TPU slice has several, in config.rollout.slots slots each.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from importlib.metadata import version

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs here but compilers
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nor is there a Cloud TPU metadata server to ask

import jax  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from epo_jax import command_line  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.mesh import AXES, check_divides, choose_sizes, sizes_of  # noqa: E402
from epo_jax.model.config import LlamaConfig  # noqa: E402
from tools.planning import formula, table  # noqa: E402
from tools.planning.chips import GIB, Topology, topology  # noqa: E402
from tools.planning.programs import PROGRAMS, Compiled, Planned, compile_program, meshes_of  # noqa: E402
from tools.planning.table import fits  # noqa: E402

MODELS = REPOSITORY / "configs" / "models"
# What makes a plan that was compiled earlier the one that is asked for.
SAME = ("topology", "mesh", "rows", "length", "slots", "weights", "parameters", "estimate")

# Imported (by tests), it leaves other commands' flags alone.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration of the run that is planned.", flag_values=FLAGS)
MODEL = flags.DEFINE_string("model", "", "llama-3-8b and the like (configs/models), or a config.json; empty: the configuration's weights.", flag_values=FLAGS)
TOPOLOGY = flags.DEFINE_string("topology", "", "The chips: v5p:2x2x1, v5e-16, h100:8.", flag_values=FLAGS)
MESH = flags.DEFINE_string("mesh", "config", "config, auto (the best of a few), or as in fsdp=8,tensor=2.", flag_values=FLAGS)
COMPARE = flags.DEFINE_integer("compare", 1, "With --mesh=auto: how many meshes that fit to compile, the most promising first.", flag_values=FLAGS)
PROGRAM_NAMES = flags.DEFINE_list("programs", list(PROGRAMS), "Which programs to compile.", flag_values=FLAGS)
JSON = flags.DEFINE_string("json", "", "A file for the figures. What it holds already is not compiled again.", flag_values=FLAGS)
ESTIMATE = flags.DEFINE_bool("estimate", False, "Use the CPU compiler for TPUs too.", flag_values=FLAGS)
TABLE = flags.DEFINE_bool("table", False, "Fill the table of docs/scaling.md.", flag_values=FLAGS)
ONLY = flags.DEFINE_list("only", [], "With --table: only these cells, each MODEL/TOPOLOGY.", flag_values=FLAGS)


def main() -> None:
    unknown = sorted(set(PROGRAM_NAMES.value) - set(PROGRAMS))
    if unknown:
        raise UserError(f"there is no program {unknown[0]!r} to plan: choose among {', '.join(PROGRAMS)}.")
    if TABLE.value:
        table.fill(ONLY.value, PROGRAM_NAMES.value)
        return
    if not TOPOLOGY.value:
        raise UserError("no chips: say which, as in --topology=v5p:2x2x1, --topology=v5e-16 or --topology=h100:8.")
    config = command_line.config_value(CONFIG)
    chips, model = topology(TOPOLOGY.value), model_of(config, MODEL.value)
    simulated = ESTIMATE.value or not chips.chip.tpu or importlib.util.find_spec("libtpu") is None
    if simulated:
        jax.config.update("jax_num_cpu_devices", chips.count)
    path = pathlib.Path(JSON.value) if JSON.value else None
    plans = read(path) if path else []
    fitting = 0
    for shape in shapes_of(config, model, chips, MESH.value):
        described = describe(config, model, chips, shape) | {"estimate": simulated}
        plan = next((one for one in plans if all(one.get(name) == described[name] for name in SAME)), None)
        if plan is None:
            plan = described | {"programs": {}}
            plans.append(plan)
        plan.update({name: value for name, value in described.items() if name not in plan})
        mesh, own = meshes_of(chips, shape, simulated=simulated)
        programs = Planned(config, model, mesh, own, plan["rows"]).programs
        for name in PROGRAM_NAMES.value:
            if name not in plan["programs"] and (fits(plan) or MESH.value != "auto"):  # of one that does not fit, auto wants to know no more
                print(f"compiling {name} for {chips.name}, {words(shape)} …", file=sys.stderr, flush=True)
                plan["programs"][name] = dataclasses.asdict(compile_program(programs[name]))
                if path:
                    path.write_text(json.dumps(plans, indent=1) + "\n")
        print(report(plan, chips))
        fitting += fits(plan)
        if fitting == COMPARE.value and MESH.value == "auto":
            break


def model_of(config: ConfigDict, name: str) -> LlamaConfig:
    """The model's sizes, from a name, a config.json, or the folder of the configuration's weights."""
    given = pathlib.Path(name or ("epo_jax/model/mini" if config.model.source == "mini" else config.model.source))
    places = (given, given / "config.json", MODELS / f"{name}.json", REPOSITORY / given / "config.json")
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        names = ", ".join(sorted(path.stem for path in MODELS.glob("*.json")))
        raise UserError(f"no sizes of a model at {given}: give --model, one of {names}, or a Hugging Face config.json.")
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a config.json: {error}.") from error
    if not isinstance(sizes, dict):
        raise UserError(f"{path} is not a config.json: it holds no JSON object.")
    return LlamaConfig.from_hf(sizes)


def shapes_of(config: ConfigDict, model: LlamaConfig, chips: Topology, asked: str) -> list[dict[str, int]]:
    """The meshes to compile for: all axes, each with its size."""
    if asked == "auto":
        found = formula.candidates(config, model, chips.count, chips.chip.hbm, platform="tpu" if chips.chip.tpu else "gpu")
        if not found:
            raise UserError(f"no mesh of {chips.count} chips over fsdp and tensor divides this model: choose another number of chips.")
        return [guess.mesh for guess in found]
    try:
        shape = chosen_for(config, model, chips) if asked == "config" else {axis: int(size) for axis, size in (part.split("=") for part in asked.split(","))}
    except ValueError:
        raise UserError(f"--mesh={asked} is no mesh: write config, auto, or sizes as in fsdp=8,tensor=2.") from None
    sizes = dict(zip(AXES, sizes_of(shape, chips.count), strict=True))
    check_divides(model, sizes)
    return [sizes]


def chosen_for(config: ConfigDict, model: LlamaConfig, chips: Topology) -> dict[str, int]:
    """As `config.mesh` says; what it leaves open as a run would choose with enough rows, since a plan rounds rows up to the mesh."""
    return choose_sizes(config.mesh.to_dict(), chips.count, width=model.hidden_size, length=config.learn.max_length)


def describe(config: ConfigDict, model: LlamaConfig, chips: Topology, shape: dict[str, int]) -> dict:
    """What is known without compiling."""
    rows, length = formula.rows_for(config.learn.rows, shape), config.learn.max_length
    return {
        "topology": chips.name, "chips": chips.count, "processes": chips.processes, "mesh": {axis: size for axis, size in shape.items() if size > 1},
        "rows": rows, "length": length, "slots": config.rollout.slots, "weights": config.rollout.weights, "parameters": model.num_params,
        "hbm": chips.chip.hbm, "flops_a_pass": formula.learn_flops(model, rows, length),
        "flops_a_decode_step": formula.decode_flops(model, config.rollout.slots * chips.processes, config.rollout.max_context),
        "guessed_peak": formula.guess(config, model, shape, platform="tpu" if chips.chip.tpu else "gpu").bytes,
        "jax": jax.__version__, "libtpu": version("libtpu") if importlib.util.find_spec("libtpu") else "",
    }  # fmt: skip


def read(path: pathlib.Path) -> list[dict]:
    """What an earlier start wrote."""
    if not path.exists():
        return []
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not a plan: {error}; move it away.") from error
    return [plan | {"mesh": {axis: size for axis, size in plan["mesh"].items() if size > 1}} for plan in plans]  # also one of before an axis was there


def report(plan: dict, chips: Topology) -> str:
    """A plan for people to read."""
    programs = {name: Compiled(**figures) for name, figures in plan["programs"].items()}
    lines = [
        f"{plan['topology']}, {plan['chips']} chips in {plan['processes']} processes ({words(plan['mesh'])}), "
        f"{plan['parameters'] / 1e9:.2f} B parameters, "
        f"{plan['rows']} rows of {plan['length']} tokens a pass" + (" — an ESTIMATE by XLA's CPU compiler" if plan["estimate"] else ""),
        f"{'GiB a chip':>12} {'arguments':>10} {'outputs':>9} {'in place':>9} {'temporary':>10} {'beside':>8} {'peak':>8} of {plan['hbm'] / GIB:.2f}",
    ]
    for name, program in programs.items():
        numbers = (program.arguments, program.outputs, program.aliased, program.temporaries, program.beside)
        figures = " ".join(f"{number / GIB:{width}.2f}" for number, width in zip(numbers, (10, 9, 9, 10, 8), strict=True))
        verdict = "fits" if program.peak <= plan["hbm"] and not program.refused else "DOES NOT FIT"
        said = f" ({program.refused})" if program.refused else ""
        lines.append(f"{name:>12} {figures} {program.peak / GIB:8.2f} {verdict}, compiled in {program.seconds:.0f} s{said}")
    for name, program in programs.items():
        sent = ", ".join(f"{count} {kind} of {size / GIB:.2f} GiB" for kind, (count, size) in program.collectives.items())
        lines.append(f"{name} sends, a chip{' and step' if name == 'decode' else ''}: {sent or program.unread or 'nothing'}")
    peak = plan["chips"] * chips.chip.flops
    flops, step = plan["flops_a_pass"], plan["flops_a_decode_step"]
    lines.append(f"a pass computes {flops:.3g} FLOPs (6 N D and attention): {flops / peak:.2f} s at the chips' peak, more in fact")
    slots = plan["slots"] * plan["processes"]
    lines.append(f"a step of decoding computes {step:.3g} FLOPs for a token in each of {slots} slots; it reads all weights, which takes longer")
    return "\n".join(lines)


def words(shape: dict[str, int]) -> str:
    return ", ".join(f"{axis} {shape[axis]}" for axis in AXES if shape.get(axis, 1) > 1) or "one device"


if __name__ == "__main__":
    command_line.run(main)
