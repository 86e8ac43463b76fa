"""A run on recorded conversations: the learner of the main command, with a file in the place of play, judge and credit.

A pass over the file is what a round is in self-play: its optimizer steps, then a checkpoint. Where a run stands, how it is stopped and
continued, and what it leaves behind is as there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from epo_jax import compilation, recorded, strategist as strategists
from epo_jax.batch import BatchCounts, TrajectoryBatch, make_batches
from epo_jax.check_learning import check_numbers
from epo_jax.errors import UserError
from epo_jax.hosts import exchange
from epo_jax.hosts.unwritten import Unwritten
from epo_jax.interrupt import StopRequest
from epo_jax.learn import choices
from epo_jax.learn.learner import Learner
from epo_jax.mesh import check_rows, describe, rows_split_over
from epo_jax.model import hf_weights
from epo_jax.report import wandb_run
from epo_jax.report.console import bar, say
from epo_jax.report.metrics import MetricsWriter
from epo_jax.report.page.run_page import RunPage
from epo_jax.run_folder import RunFolder, write_whole


class OfflineRun:
    """One run: what it is made of, and its passes."""

    def __init__(self, config: ConfigDict, stop: StopRequest) -> None:
        self.config, learn = config, config.learn
        self.mesh = strategists.make_run_mesh(config)
        check_numbers(config)
        check_rows("learn.rows", learn.rows, self.mesh)
        choices.check(learn, recorded=True)
        wandb_run.check(config)
        self._batches_of([])
        strategists.find(config.model.source)
        file = recorded.read(config.data, recorded.allowed_share(config.allow_malformed))
        self.strategist = strategists.load(config, self.mesh, lambda: list(recorded.texts(file)))
        self.conversations, cut = recorded.with_tokens(
            file.trajectories, self.strategist.conversation, max_length=learn.max_length, overlong=learn.overlong
        )
        recorded.say_cut(cut, learn.max_length, learn.overlong)
        if not self.conversations:
            raise UserError(f"no conversation of {config.data} fits into {learn.max_length} tokens: give a larger --config.learn.max_length.")
        self.folder = RunFolder.open(config)
        if (trouble := compilation.keep_programs(config.compilation_cache, self.folder.path)) is not None:
            say(trouble)
        found = {"rows": file.rows, "malformed": [row._asdict() for row in file.malformed], "cut": dataclasses.asdict(cut)}
        exchange.by_first(lambda: self._remember_data(found))
        exchange.by_first(lambda: self.strategist.tokenizer.save(self.folder.tokenizer))
        silent = None if exchange.first() else Unwritten(self.folder.path)
        self.metrics = silent or MetricsWriter.of_run(config, self.folder.path)
        self.page = silent or RunPage(self.folder.path)
        self.steps = math.ceil(len(self.conversations) / (learn.rows * learn.accumulation))  # optimizer steps a pass
        self.learner = Learner(
            config, self.strategist, self.mesh, self.folder.checkpoints, stop, {"warm_start": 0, "rounds": learn.epochs * self.steps}
        )

    def everything(self) -> None:
        """All passes, from wherever the run stands, and what they lead to."""
        self._say_plan()
        if self.learner.position.phase == "warm_start":  # there is none
            self.learner.begin_rounds()
        while self.learner.position.round < self.config.learn.epochs:
            self.learn()
        hf_weights.save(self.folder.export, self.strategist.config, self.learner.final_params(), self.folder.tokenizer)
        self.metrics.close()
        self.page.write_or_say_why_not()
        say(
            f"done: the strategist is in {self.folder.export} (a Hugging Face folder), metrics beside it in {self.folder.path}; "
            f"{self.page.path} shows them"
        )

    def learn(self) -> None:
        """One pass over the conversations."""
        position, start, done = self.learner.position, time.monotonic(), self.learner.position.steps
        rows: list[dict[str, float]] = []
        counts = BatchCounts()
        with bar(f"pass {position.round + 1}", self.steps) as progress:
            progress.advance(amount=done)
            batches = self._batches(position.round, done, counts)
            for metrics in self.learner.take_steps(batches, self.steps, on_step=progress.advance_reading):
                rows.append(metrics)
                self.metrics.write("step", int(metrics["optimizer_step"]), metrics)
        if rows:
            values = {name: float(np.mean([row[name] for row in rows])) for name in ("loss", "logprob", "entropy", "grad_norm")}
            values |= {"padding_share": counts.padding_share, "dropped_turns": counts.dropped_turns, "compilations": self.learner.compilations}
            values["compile_seconds"] = compilation.seconds()
            values["learn_tokens_per_second"] = sum(row["read_tokens"] for row in rows) / (time.monotonic() - start)
            self.metrics.write("pass", position.round + 1, values)
            say(
                f"pass {position.round + 1} of {self.config.learn.epochs}: loss {values['loss']:.4f}, log-probability of a strategist's token "
                f"{values['logprob']:.3f}, padding {values['padding_share']:.1%}, {values['learn_tokens_per_second']:.0f} tokens/s"
            )
        self.learner.end_round()
        self.page.write_or_say_why_not()

    def _batches(self, number: int, done: int, counts: BatchCounts) -> Iterator[TrajectoryBatch]:
        """The optimizer steps of a pass from the `done`-th on, made as they are needed, in an order that depends on (seed, pass) alone."""
        size = self.config.learn.rows * self.config.learn.accumulation
        order = np.random.default_rng([self.config.seed, number, 0]).permutation(len(self.conversations))
        for start in range(done * size, len(order), size):
            (batch,), more = self._batches_of([self.conversations[index] for index in order[start : start + size]])
            for field in dataclasses.fields(counts):
                setattr(counts, field.name, getattr(counts, field.name) + getattr(more, field.name))
            yield batch

    def _batches_of(self, trajectories: list) -> tuple[list[TrajectoryBatch], BatchCounts]:
        learn = self.config.learn
        return make_batches(
            trajectories,
            packing=learn.packing,
            ways=rows_split_over(self.mesh),
            length_buckets=learn.length_buckets,
            rows=learn.rows,
            accumulation=learn.accumulation,
            max_length=learn.max_length,
            pad_id=self.strategist.tokenizer.pad_id if trajectories else 0,
            normalisation=learn.normalisation,
        )

    def _remember_data(self, found: dict) -> None:
        """Writes data.json. Raises `UserError` if the run began with another content of the file: its steps would not be those it has done."""
        path = self.folder.path / "data.json"
        record = {"file": self.config.data, "sha256": recorded.fingerprint(self.config.data), **found}
        try:
            if path.exists() and json.loads(path.read_text())["sha256"] != record["sha256"]:
                raise UserError(f"{self.config.data} has changed since the run in {self.folder.path} began: give another --config.workdir=DIR.")
            write_whole(path, json.dumps(record, indent=1))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it, or choose another folder with --config.workdir=DIR.") from error
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}.") from error

    def _say_plan(self) -> None:
        learn, model = self.config.learn, self.strategist.config
        tokens = sum(len(turn.tokens) for trajectory in self.conversations for turn in trajectory.turns)
        say(
            f"{self.strategist.name} strategist, {model.num_params / 1e6:.1f} M parameters, on {describe(self.mesh)}; "
            f"{len(self.conversations)} conversations from {self.config.data}, {tokens} tokens in strategies; "
            f"{learn.epochs} passes of {self.steps} optimizer steps; writes {self.folder.path}"
        )
        for line in self.learner.placement:
            say(line)
        if self.folder.resumed:
            say(f"continuing in pass {self.learner.position.round + 1}, after {self.learner.position.steps} of its optimizer steps")
