"""The published format: there and back exactly, and what files from anywhere may hold."""

from __future__ import annotations

import copy
import json
import random

import pytest

from epo_jax import published
from epo_jax import trajectory as t
from epo_jax.errors import UserError

PUBLISHED = {
    "conversations": [
        {"from": "human", "value": "Interact with a household. Example: ..."},
        {"from": "gpt", "value": "OK"},
        {"from": "human", "value": "Your task is to: look."},
        {"from": "gpt", "value": "Thought: go to desk 1.", "score": "0.97"},
        {"from": "human", "value": "Agent1's go to desk 1\nOn the desk 1, you see nothing."},
        {"from": "gpt", "value": "Thought: stop.", "score": "1.0"},
    ]
}


def test_published_there_and_back(tmp_path):
    trajectory = published.from_published(PUBLISHED)
    assert [turn.strategy for turn in trajectory.turns] == ["Thought: go to desk 1.", "Thought: stop."]
    assert [turn.advantage for turn in trajectory.turns] == [0.97, 1.0]
    assert [message["role"] for message in trajectory.extra["messages"]] == ["user", "assistant", "user"]
    assert trajectory.first_observation == "Your task is to: look."
    assert published.to_published(trajectory) == PUBLISHED
    with_end = {"conversations": [*PUBLISHED["conversations"], {"from": "human", "value": "The end."}]}
    assert published.to_published(published.from_published(with_end)) == with_end
    published.write_published(tmp_path / "p.json", [trajectory, published.from_published(with_end)])
    assert json.loads((tmp_path / "p.json").read_text()) == [PUBLISHED, with_end]
    read = published.read_published(tmp_path / "p.json").trajectories
    assert read[0].turns == trajectory.turns and [r.task_id for r in read] == ["0", "1"]
    t.write_jsonl(tmp_path / "p.jsonl", read)
    assert t.read_jsonl(tmp_path / "p.jsonl") == read


def test_published_without_scores_and_with_gaps():
    bare = {"conversations": [{k: v for k, v in m.items() if k != "score"} for m in PUBLISHED["conversations"]]}
    trajectory = published.from_published(bare)
    assert len(trajectory.turns) == 2 and all(turn.advantage is None for turn in trajectory.turns)
    assert published.to_published(trajectory) == bare
    gap = json.loads(json.dumps(PUBLISHED))
    del gap["conversations"][5]["score"]  # a strategist turn that nobody scored still counts in T_i
    assert [turn.advantage for turn in published.from_published(gap).turns] == [0.97, 0.0]


def test_own_trajectories_are_published_with_what_the_strategist_read():
    trajectory = t.Trajectory("e", "x", turns=[t.Turn(strategy="a", observation="seen", advantage=0.5), t.Turn(strategy="b", observation="end", advantage=-1)])
    trajectory.first_observation = "room"
    assert published.to_published(trajectory)["conversations"] == [
        {"from": "human", "value": "room"}, {"from": "gpt", "value": "a", "score": "0.5"}, {"from": "human", "value": "seen"}, {"from": "gpt", "value": "b", "score": "-1.0"},
    ]  # fmt: skip
    trajectory.extra["messages"] = [{"role": "system", "content": "be short"}, {"role": "user", "content": "room"}]
    trajectory.extra["replies"] = ["Agent1's go\nseen", ""]
    values = [message["value"] for message in published.to_published(trajectory)["conversations"]]
    assert values == ["be short\n\nroom", "a", "Agent1's go\nseen", "b"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "conversations"),
        (None, "conversations"),
        ({"conversations": []}, "conversations"),
        ({"conversations": {"from": "human", "value": "x"}}, "conversations"),
        ({"conversations": ["x"]}, "message 1"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "human"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "human"),
        ({"conversations": [{"from": "human", "value": 3}]}, "value"),
        ({"conversations": [{"from": "human"}]}, "value"),
        ({"conversations": [{"from": "gpt", "value": "y", "score": "1"}]}, "no human message stands before"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}, {"from": "gpt", "value": "z", "score": "1"}]}, "message 3"),
        ({"conversations": [{"from": "human", "value": "x", "score": "1"}, {"from": "gpt", "value": "y", "score": "1"}]}, "human's and has a score"),
        *(
            ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "score": score}]}, "score")
            for score in ("good", "nan", float("nan"), "-inf", "1" * 400, 10**400, [0.5], True, {}, "9" * 10_000_000)
        ),
    ],
)
def test_bad_published_records_are_told(record, words):
    with pytest.raises(UserError, match=words) as told:
        published.from_published(record)
    assert len(str(told.value)) < 300 and "\n" not in str(told.value)


# --- round trips ------------------------------------------------------------------------------------------------------------------------------


def hostile(chooser: random.Random) -> str:
    return chooser.choice(["", " ", "OK", "Thought: go", "a\r\nb\n\n", "é 日本 😀 \u2028 \x00", '"quoted" \\ back', "\ud800 lone", "<|user|>[INST]", "x" * 3000])


def some_record(seed: int) -> dict:
    """A valid row with everything that the format leaves open: scores in any spelling, gaps, human messages in a row, fields of no meaning."""
    chooser = random.Random(seed)
    human = lambda: [{"from": "human", "value": hostile(chooser)} for _ in range(chooser.choice([1, 1, 1, 2]))]  # noqa: E731
    messages = human()
    for _ in range(chooser.randint(0, 2)):
        messages += [{"from": "gpt", "value": chooser.choice(["OK", hostile(chooser)])}, *human()]
    for _ in range(chooser.randint(1, 4)):
        score = chooser.choice(["0.97", "1", "-0.50", "1e-3", 0.25, 1, None, "", "missing", "0.1000000000000000055511151231257827"])
        messages.append({"from": "gpt", "value": hostile(chooser)} | ({} if score == "missing" else {"score": score}))
        messages += human()
    if chooser.random() < 0.5:
        while messages[-1]["from"] == "human":
            messages.pop()
    return {"conversations": messages} | ({"id": seed, "source": {"a": [1]}} if chooser.random() < 0.3 else {})


def test_any_file_is_written_again_as_it_was_read(tmp_path):
    """Text, spelling of scores, and fields that mean nothing here; through trajectories, and through our own file of trajectories."""
    records = [some_record(seed) for seed in range(300)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    read = published.read_published(tmp_path / "a.json")
    assert read.rows == 300 and not read.malformed
    assert sum("record" in trajectory.extra for trajectory in read.trajectories) < 300  # the plain ones need no copy
    t.write_jsonl(tmp_path / "a.jsonl", read.trajectories)
    published.write_published(tmp_path / "b.json", t.read_jsonl(tmp_path / "a.jsonl"))
    assert json.dumps(json.loads((tmp_path / "b.json").read_text()), sort_keys=True) == json.dumps(records, sort_keys=True)


def test_own_trajectories_keep_text_and_advantages(tmp_path):
    chooser = random.Random(0)
    own = []
    for seed in range(100):
        turns = [t.Turn(strategy=hostile(chooser), observation=hostile(chooser), advantage=chooser.gauss(0, 1) * 10 ** chooser.randint(-30, 30)) for _ in range(chooser.randint(1, 5))]
        opening = [{"role": "user", "content": "rules"}, {"role": "assistant", "content": "OK"}, {"role": "user", "content": hostile(chooser)}]
        extra = {"messages": opening[chooser.choice([0, 2]) :], "replies": [f"Agent1's go\n{turn.observation}" for turn in turns]}
        own.append(t.Trajectory("alfworld", str(seed), turns=turns, extra=extra))
    published.write_published(tmp_path / "a.json", own)
    read = published.read_published(tmp_path / "a.json", scored=True)
    assert not read.malformed
    for ours, back in zip(own, read.trajectories, strict=True):
        assert [(turn.strategy, turn.advantage) for turn in back.turns] == [(turn.strategy, turn.advantage) for turn in ours.turns]
        assert back.extra["messages"] == ours.extra["messages"] and back.extra["replies"] == ours.extra["replies"]
    published.write_published(tmp_path / "b.json", read.trajectories)
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_new_advantages_are_written_and_not_those_of_the_file():
    record = copy.deepcopy(PUBLISHED)
    record["conversations"][3]["score"] = "0.970"
    trajectory = published.from_published(record)
    assert published.to_published(trajectory)["conversations"][3]["score"] == "0.970"
    trajectory.turns[0].advantage = 0.5
    assert [m.get("score") for m in published.to_published(trajectory)["conversations"]] == [None, None, None, "0.5", None, "1.0"]


def test_an_acknowledgement_belongs_to_the_opening():
    """Before the first score nothing is a turn: neither tokens of it are trained on, nor does it count in T_i."""
    trajectory = published.from_published(PUBLISHED)
    assert trajectory.extra["messages"][1] == {"role": "assistant", "content": "OK"}
    assert "OK" not in [turn.strategy for turn in trajectory.turns]


def test_nothing_said_is_a_conversation_without_turns():
    assert published.to_published(t.Trajectory("e", "x", first_observation="room", extra={"replies": []}))["conversations"] == [{"from": "human", "value": "room"}]


# --- files from anywhere ------------------------------------------------------------------------------------------------------------------------


def good(number: int = 0) -> dict:
    return {"conversations": [{"from": "human", "value": f"task {number}"}, {"from": "gpt", "value": "go", "score": "1.0"}]}


def test_malformed_rows_are_found_with_their_line_and_the_others_are_read(tmp_path):
    rows = [json.dumps(good(0)), '{"conversations": []}', json.dumps(good(1), indent=2), "7", '{"conversations": [{"from": "human", "value": "x"}]}', "null", json.dumps(good(2))]
    lines = ["["]
    begins = []
    for index, row in enumerate(rows):
        lines += ["", row + ("," if index + 1 < len(rows) else "")]
        begins.append(sum(line.count("\n") + 1 for line in lines[:-1]) + 1)
    (tmp_path / "a.json").write_text("\n".join([*lines, "]", ""]))
    read = published.read_published(tmp_path / "a.json", scored=True)
    assert read.rows == 7 and [trajectory.first_observation for trajectory in read.trajectories] == ["task 0", "task 1", "task 2"]
    assert [trajectory.task_id for trajectory in read.trajectories] == ["0", "2", "6"]
    assert [(row.line, row.row) for row in read.malformed] == [(begins[index], index + 1) for index in (1, 3, 4, 5)]
    assert "no strategist message (gpt) has a score" in str(read.malformed[2]) and f"line {begins[3]} (row 4)" in str(read.malformed[1])


@pytest.mark.parametrize("at_once", [1, 2, 7, 1000])
def test_where_a_reading_ends_does_not_matter(tmp_path, monkeypatch, at_once):
    records = [some_record(seed) for seed in range(10)] + [1234567, "text, with ] and [", [1, [2]], None, 12.5e-3, good()]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1, ensure_ascii=True))
    whole = published.read_published(tmp_path / "a.json")
    monkeypatch.setattr(published, "READ_AT_ONCE", at_once)
    assert published.read_published(tmp_path / "a.json") == whole
    assert whole.rows == 16 and len(whole.trajectories) == 11


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"{", "not hold a list"),
        (b"{}", "not hold a list of conversations"),
        (b'{"conversations": []}\n{"conversations": []}\n', "not hold a list"),
        (b"hello", "is not JSON"),
        (b"[", "from line 1 on"),
        (b"[\n\n", "from line 3 on"),
        (b'[\n{"conversations": [{"from": "human",\n "val', "from line 3 on"),
        (b"[\n1,\n2\n3]", "from line 4 on .a comma"),
        (b"[1,]", "from line 1 on"),
        (b"[1]\n[2]", "from line 2 on .something follows"),
        (b"[NaN, tru]", "from line 1 on"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'[{"a": ' + b"1" * 5000 + b"}]", "digits"),
        (b'["\xff\xfe"]', "not UTF-8"),
        ("[1]".encode("utf-16"), "not UTF-8"),
        (b"\x1f\x8b\x08\x00 zipped", "not UTF-8"),
        (b"\x00" * 100, "is not JSON"),
    ],
)
def test_files_that_are_no_list_of_conversations_are_told_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as told:
        published.read_published(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_files_that_cannot_be_read_are_told(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(UserError, match="cannot read conversations from"):
            published.read_published(path)


def test_a_byte_order_mark_and_foreign_line_ends_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([good(), {}], indent=1).replace("\n", "\r\n").encode())
    read = published.read_published(tmp_path / "a.json")
    assert len(read.trajectories) == 1 and read.malformed[0].line == 15


def test_a_row_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "READ_AT_ONCE", 100)
    monkeypatch.setattr(published, "LONGEST_ROW", 1000)
    (tmp_path / "a.json").write_text(json.dumps([good(), {"conversations": "x" * 900}, good(), "y" * 100_000]))
    with pytest.raises(UserError, match="from line 1 on .a row longer than 1,000 characters"):
        published.read_published(tmp_path / "a.json")


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        published.write_published(tmp_path / "file" / "a.json", [])
    published.write_published(tmp_path / "empty.json", [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []
