"""The page that shows a run: one HTML file that opens from disk, without a server and without the network.

    RunPage(folder).write()          # DIR/page.html; of a run that goes on, what has not changed is not read again

All that the page shows is data in compressed blocks, read by the browser; its program makes text of it and never HTML, and the page's
Content-Security-Policy allows nothing but this program and this style.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from epo_jax.errors import UserError
from epo_jax.report.console import say
from epo_jax.report.page import comparisons, curves, health, origin
from epo_jax.report.page.episodes import BLOCK, COLUMNS, PHASES, EpisodesFile, chosen_blocks, compressed, read
from epo_jax.report.page.token_texts import TokenTexts

NAME = "page.html"
MOST_BYTES = 14_000_000  # of the file; of more, some conversations are left out and said to be
PROGRAM = (
    "data.js", "text.js", "numbers.js", "chart.js", "overview.js", "tokens.js", "episode.js", "beside.js", "episodes.js",
    "meetings.js", "evaluation.js", "health.js", "provenance.js", "main.js",
)  # fmt: skip
_NUMBERED = re.compile(r"(?:round|cycle)_(\d+)\.jsonl")


class RunPage:
    """A run's page. Files of episodes are kept as the page holds them, so that writing it again reads only what is new."""

    def __init__(self, folder: str | os.PathLike[str], evaluations: Sequence[pathlib.Path] = ()) -> None:
        """evaluations: folders of `epo_jax.evaluate` to compare on the page. Nothing is read yet."""
        self.folder, self._evaluations = pathlib.Path(folder), tuple(evaluations)
        self._kept: dict[pathlib.Path, tuple[tuple[int, int], EpisodesFile]] = {}
        self._token_texts: TokenTexts | None = None

    @property
    def path(self) -> pathlib.Path:
        return self.folder / NAME

    def write(self) -> pathlib.Path:
        """Writes DIR/page.html and returns its path. Raises `UserError` where there is no run, or no room."""
        path, content = self.path, self.html()
        scratch = path.with_name(f".{NAME}.{os.getpid()}.partial")
        try:
            scratch.write_text(content, encoding="utf-8")
            os.replace(scratch, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; make room or look at the folder's rights.") from error
        finally:
            scratch.unlink(missing_ok=True)
        return path

    def write_or_say_why_not(self) -> None:
        """For a run that goes on: a page that cannot be written is no reason to stop learning."""
        try:
            self.write()
        except UserError as error:
            say(f"the run's page was not written: {error}")
        except Exception as error:  # whatever a file may hold that nobody thought of: days of learning matter more
            say(f"the run's page was not written ({type(error).__name__}: {error}); python -m epo_jax.report --run={self.folder} tells where")

    def html(self, *, watch: str | None = None) -> str:
        """The whole page. watch: of a page that is served, what it compares to know that a newer one is there."""
        config = origin.read_config(self.folder)
        unreadable: list[str] = []
        files = self._read_files(config, unreadable)
        metrics = curves.Metrics.read(self.folder / "metrics.jsonl", unreadable)
        starts = origin.read_starts(self.folder, unreadable)
        rounds = metrics.rounds(files)
        evaluations = comparisons.of_run(files)
        data = {
            "run": {
                "name": str(config.get("name", self.folder.name)),
                "folder": str(self.folder),
                "rounds": config.get("rounds"),
                "done": max(rounds, default=0),
                "normalisation": config.get("learn.normalisation", "turn"),
            },
            "curves": curves.curves(metrics, files, starts),
            "rounds": _all_figures(rounds),
            "evaluations": [*evaluations, *comparisons.of_folders(self._evaluations)],
            "health": health.health(rounds, files, evaluations, unreadable, asks_api=_asks_api(config)),
            "origin": origin.origin(self.folder, config, starts, metrics, files),
        }
        budget = 3 * (MOST_BYTES - 500_000) // 4 - len(compressed([file.rows for file in files]))  # 4 characters hold 3 bytes
        chosen = chosen_blocks(files, budget)
        blocks = [block for file, kept in zip(files, chosen, strict=True) for place, block in enumerate(file.blocks) if place in kept]
        data["episodes"] = self._index(files, chosen, origin.weights_after(self.folder, config, files))
        return _assemble([compressed(data), *blocks], watch)

    def fingerprint(self) -> str:
        """Changes when a file changes that the page shows."""
        paths = [self.folder / name for name in ("config.json", "metrics.jsonl", "provenance.jsonl")]
        paths += [path for path, _, _ in self._episode_files({})] + sorted((self.folder / "checkpoints").glob("step_*/checkpoint.json"))
        return hashlib.sha256(repr([(path.name, _state(path)) for path in paths]).encode()).hexdigest()[:16]

    # --- its parts --------------------------------------------------------------------------------------------------

    def _episode_files(self, config: dict[str, Any]) -> list[tuple[pathlib.Path, str, int]]:
        """(path, phase, round) in the order in which they are played; see `episodes.PHASES`."""
        found = []
        inspected = config.get("learn_from") == "stepagent" and config.get("stepagent.reflect_on") == "inspection"
        learned = "states" if inspected else "round"
        for phase, name, first in (("evaluation", "evaluation", 0), ("inspection", "inspections", 1), (learned, "trajectories", 1)):
            for path in (self.folder / name).glob("*.jsonl"):
                if match := _NUMBERED.fullmatch(path.name):
                    found.append((path, phase, int(match[1]) + first))
        return sorted(found, key=lambda each: (each[2] - (each[1] != "evaluation"), PHASES.index(each[1])))

    def _read_files(self, config: dict[str, Any], unreadable: list[str]) -> list[EpisodesFile]:
        """All files of episodes; of those that are damaged a sentence in `unreadable`."""
        if self._token_texts is None:
            try:
                self._token_texts = TokenTexts.of_run(self.folder)
            except UserError as error:
                unreadable.append(f"Tokens are not shown: {error}")
        longest = config.get("learn.max_length")
        files = []
        for path, phase, round in self._episode_files(config):
            state = _state(path)
            try:
                if self._kept.get(path, (None,))[0] != state:
                    limit = longest if phase in ("round", "states") and curves.is_number(longest) else None
                    self._kept[path] = state, read(path, phase, round, self._token_texts, limit)
                files.append(self._kept[path][1])
            except UserError as error:
                unreadable.append(str(error))
        if self._token_texts is not None and self._token_texts.unknown:
            unreadable.append(f"{self._token_texts.unknown} strategies hold tokens that are not in the run's tokenizer, and are shown as text.")
        return files

    def _index(self, files: Sequence[EpisodesFile], chosen: Sequence[set[int]], weights: Mapping[int, str]) -> dict[str, Any]:
        """Every episode's row, and where its conversation is: files have `first_block` and the `kept` ones of their blocks."""
        first_block, listed, partner = 1, [], COLUMNS.index("partner")
        for file, kept in zip(files, chosen, strict=True):
            listed.append(
                {
                    "name": file.name,
                    "phase": file.phase,
                    "round": file.round,
                    "demonstrated": file.demonstrated,
                    "rows": [[*row[:partner], origin.told_partner(row[partner], weights), *row[partner + 1 :]] for row in file.rows],
                    "first_block": first_block,
                    "kept": sorted(kept),
                }
            )
            first_block += len(kept)
        texts = self._token_texts
        table = {str(token): text for token, text in texts.table.items()} if texts else {}
        return {"columns": COLUMNS, "block": BLOCK, "files": listed, "tokens": table, "special": sorted(texts.special) if texts else []}


def _all_figures(rounds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in rounds.values() for name in row))
    return {
        "names": names,
        "rows": [[number, *(row[name] if curves.is_number(row.get(name)) else None for name in names)] for number, row in rounds.items()],
    }


def _asks_api(config: Mapping[str, Any]) -> bool:
    """Whether a model behind an API is the actor, the judge or the evaluator (partners.py)."""
    return any(config.get(role) == "openai" for role in ("actor", "judge", "evaluator")) or config.get("judge") == "graded"


def _state(path: pathlib.Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


def _assemble(blocks: Sequence[bytes], watch: str | None) -> str:
    """Base64 has no character that could end the element that it stands in."""
    source = importlib.resources.files("epo_jax.report.page") / "source"
    style = (source / "page.css").read_text(encoding="utf-8")
    names = [*PROGRAM[:-1], "watch.js", PROGRAM[-1]] if watch is not None else PROGRAM
    program = "\n".join((source / name).read_text(encoding="utf-8") for name in names)
    if watch is not None:
        program = program.replace("WATCHED_VERSION", f'"{watch}"')
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",  # the empty icon, so that no browser asks for one
            f"script-src {_digest(program)}",
            f"style-src {_digest(style)}",
            *(["connect-src 'self'"] if watch is not None else []),
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    held = "\n".join(f'<script type="application/octet-stream" class="block">{base64.b64encode(block).decode()}</script>' for block in blocks)
    page = (source / "page.html").read_text(encoding="utf-8")
    for mark, text in (("POLICY", policy), ("STYLE", style), ("BLOCKS", held), ("PROGRAM", program)):
        page = page.replace(f"<!--{mark}-->", text, 1)
    return page


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
