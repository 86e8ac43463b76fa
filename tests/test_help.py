"""Every command answers --help with its purpose, an example, and its own flags, each explained."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = {f"epo_jax.{name}": f"python -m epo_jax.{name} --" for name in ("train", "evaluate", "export", "report", "serve")}
COMMANDS |= {"tools.plan": "python tools/plan.py --"}
TOOLS = sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py") if "__main__" in path.read_text() and f"tools.{path.stem}" not in COMMANDS)
# All commands in one process, which imports once what they share; each in a child of its own, as two commands may define one flag.
ALL_OF_THEM = """
import os, runpy, sys
import epo_jax.strategist
for name in sys.argv[1:]:
    print(f"=== {name}", flush=True)
    if not (child := os.fork()):
        sys.argv = [name, "--help"]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def helps():
    done = subprocess.run([sys.executable, "-c", ALL_OF_THEM, *COMMANDS], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=True)
    return dict(part.split("\n", 1) for part in done.stdout.split("=== ")[1:])


@pytest.mark.parametrize("module", COMMANDS)
def test_a_module(helps, module):
    text = helps[module]
    purpose, _, rest = text.partition("\n")
    example, own = rest.find(COMMANDS[module]), rest.find("\n  --")
    assert purpose.endswith(".") and 0 <= example < own, text
    assert not re.search(r"^  --\S+:\s*$", text, re.MULTILINE)  # a flag without a word about it


def test_of_a_run_the_best_weights_are_taken_unless_a_step_is_named(helps):
    for module in ("epo_jax.evaluate", "epo_jax.export", "epo_jax.serve"):
        step = helps[module].partition("\n  --step:")[2].partition("\n  --")[0]
        assert "if not given, the best where the run keeps it, else the newest whole one" in " ".join(step.split()), step


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config=configs/alfshop.py", "--config.lern.rows=3"], 'no such field in the configuration: lern. Did you mean "learn"'),
        (["--config=configs/alfshop.py:nope"], "flag --config=configs/alfshop.py:nope: configs/alfshop.py has no preset 'nope': known are"),
        (["--config=broken.py"], "flag --config=broken.py: TypeError: int() argument must be"),
    ],
)
def test_a_misspelt_configuration_is_told_by_what_it_came_to(arguments, told, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return int([])\n")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    command, own = [sys.executable, "-m", "epo_jax.train", *arguments], os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stderr.startswith(f"epo_jax: {told}") and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool(tool, capsys):
    module = importlib.import_module(f"tools.{tool}")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    text = capsys.readouterr().out
    purpose, example, flags = text.find(module.__doc__.split(".")[0][:60]), text.find(f"python tools/{tool}.py --"), text.find("\noptions:")
    assert stopped.value.code == 0 and 0 <= purpose < flags, text
    assert 0 <= example < flags or 0 <= text.find(f"python tools/{tool}.py [--") < flags, text
    for flag in re.findall(r"^  (--\w+.*)$", text[flags:], re.MULTILINE):
        following = text[flags:].split(flag, 1)[1].split("\n")[1] if not re.search(r"\S  +\S", flag) else ""
        assert re.search(r"\S  +\S", flag) or following.startswith("       "), f"{flag} has no word about it"
