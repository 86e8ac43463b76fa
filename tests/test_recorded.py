"""Recorded conversations before the first step: how many malformed rows pass, what is trained on, and what becomes of long ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from epo_jax import recorded
from epo_jax.batch import pad
from epo_jax.errors import UserError
from epo_jax.model.conversation import ConversationFormat
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.published import from_published
from epo_jax.strategist import MINI


@pytest.fixture(scope="module")
def form() -> ConversationFormat:
    return ConversationFormat(Tokenizer.load(MINI))


def conversation(turns: int, words: int = 4) -> dict:
    """Rules, "OK", a task, and `turns` strategies with the scores 1/2, 1/3, ..., each followed by a message."""
    messages = [{"from": "human", "value": "rules of the house"}, {"from": "gpt", "value": "OK"}, {"from": "human", "value": "put the mug on the desk"}]
    for number in range(turns):
        messages.append({"from": "gpt", "value": f"go to cabinet {number}", "score": str(1 / (number + 2))})
        messages.append({"from": "human", "value": " ".join(["you see a mug"] * words) + f" {number}"})
    return {"conversations": messages}


def weights_of_turns(trajectories, form, max_length: int) -> dict[str, float]:
    """Each strategy's text and the sum of its tokens' loss weights, as the learner gets them."""
    batches, _ = pad(trajectories, length_buckets=(max_length,), rows=1, max_length=max_length, pad_id=0)
    found = {}
    for batch in batches:
        for turn in range(1, batch.turn_ids.max(initial=0) + 1):
            here = batch.turn_ids == turn
            found[form.text(batch.tokens[here].tolist())] = float(batch.loss_weights[here].sum())
    return found


# --- the file -------------------------------------------------------------------------------------------------------------------------------


def test_only_scored_strategies_are_trained_on(form):
    """Not the acknowledgement, not what was read, and of a later strategy without a score nothing either, but it counts in T_i."""
    record = conversation(3)
    del record["conversations"][5]["score"]
    (trajectory,), cut = recorded.with_tokens([from_published(record)], form, max_length=512, overlong="drop")
    assert cut == recorded.Cut()
    found = weights_of_turns([trajectory], form, 512)
    np.testing.assert_allclose([found[f"go to cabinet {number}"] for number in range(3)], [1 / 2 / 3, 0.0, 1 / 4 / 3], rtol=1e-6)
    assert len(found) == 3
    assert "OK" in form.tokenizer.decode(trajectory.turns[0].prompt_tokens)


def write(tmp_path, good: int, bad: int) -> str:
    path = tmp_path / f"{good}_{bad}.json"
    path.write_text(json.dumps([conversation(1)] * good + [{"conversations": []}] * bad, indent=1))
    return str(path)


def test_one_per_cent_of_malformed_rows_passes_and_is_listed(tmp_path, capsys):
    file = recorded.read(write(tmp_path, 99, 1), 0.01)
    assert len(file.trajectories) == 99
    line = 2 + 99 * len(json.dumps([conversation(1)], indent=1).splitlines()[1:-1])
    assert f"line {line} (row 100): a published record has no list" in capsys.readouterr().out


def test_more_stops_the_run_unless_allowed(tmp_path, capsys):
    path = write(tmp_path, 98, 2)
    with pytest.raises(UserError, match=r"^2 of the 100 rows of .* are malformed, the first at line \d+ \(row 99\): .*allow_malformed=True") as told:
        recorded.read(path, 0.01)
    assert "\n" not in str(told.value) and "(row 100)" in capsys.readouterr().out  # all are listed before it stops
    assert len(recorded.read(path, 0.02).trajectories) == 98
    many = write(tmp_path, 1, 50)
    assert len(recorded.read(many, 1.0).trajectories) == 1
    assert "30 more malformed rows" in capsys.readouterr().out


def test_files_with_nothing_to_learn_from_are_told(tmp_path):
    with pytest.raises(UserError, match="--config.data="):
        recorded.read("", 1.0)
    with pytest.raises(UserError, match="its list is empty"):
        recorded.read(write(tmp_path, 0, 0), 1.0)
    with pytest.raises(UserError, match="all of its 3 rows are malformed"):
        recorded.read(write(tmp_path, 0, 3), 1.0)


@pytest.mark.parametrize(("setting", "share"), [("True", 1.0), ("true", 1.0), ("False", 0.0), ("0.05", 0.05), ("1", 1.0), ("0", 0.0)])
def test_allowed_share(setting, share):
    assert recorded.allowed_share(setting) == share


@pytest.mark.parametrize("setting", ["yes", "", "-0.1", "5", "nan", "inf", "5%"])
def test_other_shares_are_refused(setting):
    with pytest.raises(UserError, match="allow_malformed"):
        recorded.allowed_share(setting)


# --- length ---------------------------------------------------------------------------------------------------------------------------------


def test_long_conversations_drop_whole_turns_and_are_counted(form):
    long, short = from_published(conversation(6)), from_published(conversation(2))
    form.fill_tokens(long)
    length = sum(len(turn.prompt_tokens) + len(turn.tokens) for turn in long.turns[:4])
    ready, cut = recorded.with_tokens([long, short], form, max_length=length, overlong="drop")
    assert len(ready) == 2 and cut == recorded.Cut(longer=1, dropped_turns=2)
    found = weights_of_turns(ready[:1], form, length)
    np.testing.assert_allclose(list(found.values()), [1 / (number + 2) / 6 for number in range(4)], rtol=1e-6)
    _, cut = recorded.with_tokens([long], form, max_length=length - 1, overlong="drop")
    assert cut.dropped_turns == 3
    ready, cut = recorded.with_tokens([long], form, max_length=10, overlong="drop")
    assert ready == [] and cut == recorded.Cut(longer=1, dropped_turns=6, left_out=1)


@pytest.mark.parametrize("length", [60, 75, 100, 150])
def test_split_conversations_keep_every_turn_and_its_weight(form, length):
    """Each part is the conversation of its own messages, fits, and weighs its turns by the whole conversation's T_i."""
    (record,) = [conversation(9)]
    whole = from_published(record)
    parts, cut = recorded.with_tokens([from_published(record)], form, max_length=length, overlong="split")
    assert cut == recorded.Cut(longer=1, parts=len(parts)) and len(parts) >= 2
    assert [turn.strategy for part in parts for turn in part.turns] == [turn.strategy for turn in whole.turns]
    done = 0
    for part in parts:
        assert len(part.tokens) <= length
        messages = [{"role": "user", "content": "rules of the house"}, {"role": "assistant", "content": "OK"}]
        task = "put the mug on the desk" + (f"\n\n{whole.extra['replies'][done - 1]}" if done else "")
        assert part.turns[0].prompt_tokens == form.start([*messages, {"role": "user", "content": task}])
        done += len(part.turns)
    found = weights_of_turns(parts, form, length)
    np.testing.assert_allclose([found[f"go to cabinet {number}"] for number in range(9)], [1 / (number + 2) / 9 for number in range(9)], rtol=1e-6)


def test_what_cannot_be_split_is_dropped_and_counted(form):
    record = conversation(5)
    record["conversations"][7]["value"] = "look " * 300  # the third strategy alone is too long
    parts, cut = recorded.with_tokens([from_published(record)], form, max_length=200, overlong="split")
    assert cut == recorded.Cut(longer=1, dropped_turns=1, parts=len(parts))
    assert [turn.strategy[-1] for part in parts for turn in part.turns] == ["0", "1", "3", "4"]
    record["conversations"][0]["value"] = "rule " * 300  # and here not even the opening fits
    parts, cut = recorded.with_tokens([from_published(record)], form, max_length=200, overlong="split")
    assert parts == [] and cut == recorded.Cut(longer=1, dropped_turns=5, left_out=1)
    with pytest.raises(UserError, match="drop, split"):
        recorded.with_tokens([], form, max_length=200, overlong="cut")
