"""The table of docs/scaling.md: for each model and each set of chips the mesh that fits best. A later start goes on from its cells' files."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys

from configs import alfshop
from epo_jax.errors import UserError
from epo_jax.model.config import LlamaConfig
from tools.planning import formula
from tools.planning.chips import GIB, Topology, topology

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
DOCUMENT = REPOSITORY / "docs" / "scaling.md"
CELLS = REPOSITORY / "docs" / "scaling"
BEGIN, END = "<!-- made by tools/plan.py --table -->", "<!-- end -->"

MODELS = {"llama-3.2-1b": "Llama-3.2-1B", "llama-3-8b": "Llama-3-8B", "llama-3.1-70b": "Llama-3.1-70B"}
TOPOLOGIES = ("v5e-16", "v5p-8", "v5p-64", "v6e-16", "8xh100", "1xh200")
LENGTH = 4096
# What every cell trains: the published setting, as many rows in a pass as the mesh splits them over, all weights.
CONFIG = "configs/alfshop.py:llama3_8b"
SETTINGS = {"learn.max_length": LENGTH, "learn.length_buckets": (LENGTH,), "rollout.max_context": LENGTH, "learn.rows": 1,
            "model.compute_dtype": "bfloat16", "model.remat": "full"}  # fmt: skip
SLOTS = 32  # episodes played at once, by all processes together
NEEDED = ("pass", "update", "decode")


def fill(only: list[str], programs: list[str]) -> None:
    """Compiles what is missing, each cell in a process of its own (the number of simulated devices is fixed when JAX starts), and writes the
    table after each."""
    cells = [(model, chips) for model in MODELS for chips in TOPOLOGIES]
    wanted = [(model, chips) for model, chips in cells if not only or f"{model}/{chips}" in only]
    if not wanted:
        raise UserError(f"the table has none of the cells {', '.join(only)}: they are named as in {cells[0][0]}/{cells[0][1]}.")
    CELLS.mkdir(exist_ok=True)
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    for model, chips in wanted:
        command = [sys.executable, str(REPOSITORY / "tools" / "plan.py"), f"--config={CONFIG}", *settings, f"--model={model}",
                   f"--topology={chips}",
                   f"--config.rollout.slots={SLOTS // topology(chips).processes}", "--mesh=auto",
                   f"--json={cell(model, chips)}", f"--programs={','.join(programs)}"]  # fmt: skip
        failed = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        if failed:
            print(f"{model}/{chips}: no plan (exit code {failed})", file=sys.stderr)
        write()


def cell(model: str, chips: str) -> pathlib.Path:
    return CELLS / f"{model}_{chips}.json"


def write() -> None:
    """The document with the table as the cells say."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")


def render() -> str:
    rows = ["| model | chips | mesh | learning, GiB a chip | playing | of | fits | a pass sends, GiB a row |", "|---|---|---|---|---|---|---|---|"]
    for model, name in MODELS.items():
        for chips in TOPOLOGIES:
            path = cell(model, chips)
            plans = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            found = topology(chips)
            row = _row(best(plans)) or _predicted(model, found)
            rows.append(f"| {name} | {chips} ({found.count} in {found.processes}) | {row} |")
    return "\n".join(rows)


def best(plans: list[dict]) -> dict | None:
    """Of those that have been compiled whole: one that fits, the least sent; where none fits, the smallest. Else the one that has come furthest."""
    whole = [plan for plan in plans if set(NEEDED) <= set(plan["programs"])]
    if not whole:  # none fits, or the work is not done yet
        return min((plan for plan in plans if plan["programs"]), key=peak, default=None)
    return min(whole, key=lambda plan: (not fits(plan), sent(plan) if fits(plan) else peak(plan)))


def peak(plan: dict, *names: str) -> float:
    return max((figures["peak"] for name, figures in plan["programs"].items() if not names or name in names), default=0.0)


def fits(plan: dict) -> bool:
    return peak(plan) <= plan["hbm"] and not any(figures["refused"] for figures in plan["programs"].values())


def sent(plan: dict) -> float:
    """Bytes that a chip sends in a pass, for each row that the pass learns from: rows differ between meshes."""
    figures = plan["programs"]["pass"]
    return math.inf if figures.get("unread") else sum(size for _, size in figures["collectives"].values()) / plan["rows"]


def _row(plan: dict | None) -> str:
    if plan is None or not plan["programs"]:
        return ""
    mark = "≈ " if plan["estimate"] else ""
    parts = (("pass", "update"), ("decode",))
    learning, playing = (f"{mark}{peak(plan, *names) / GIB:.1f}" if set(names) & set(plan["programs"]) else "—" for names in parts)
    whole = set(NEEDED) <= set(plan["programs"])
    verdict = "**no**" if not fits(plan) else "yes" if whole else "as far as compiled"
    known = plan["mesh"] and "pass" in plan["programs"] and plan["programs"]["pass"]["collectives"]  # a device alone sends nothing
    moved = f"{sent(plan) / GIB:.1f}" if known else "—"
    return f"{_words(plan['mesh'])} | {learning} | {playing} | {plan['hbm'] / GIB:.2f} | {verdict} | {moved}"


def _predicted(name: str, chips: Topology) -> str:
    """What is known of a cell that is not compiled yet."""
    config = alfshop.get_config(CONFIG.split(":")[1])
    config.update_from_flattened_dict(SETTINGS)
    model = LlamaConfig.from_hf(json.loads((REPOSITORY / "configs" / "models" / f"{name}.json").read_text(encoding="utf-8")))
    guess = formula.candidates(config, model, chips.count, chips.chip.hbm, platform="tpu" if chips.chip.tpu else "gpu", most=1)[0]
    verdict = "predicted" if guess.bytes <= chips.chip.hbm else "**no**, predicted"
    return f"{_words(guess.mesh)} | ~ {guess.bytes / GIB:.1f} | — | {chips.chip.hbm / GIB:.2f} | {verdict} | —"


def _words(mesh: dict[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
