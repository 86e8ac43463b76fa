"""What the run page holds, without a browser: its data against the run's files, and the rules by which it warns."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import pathlib
import random
import re
import zlib

import pytest

from epo_jax.errors import UserError
from epo_jax.evaluation import estimate, paired_difference, values_of
from epo_jax.model.tokenizer import Tokenizer
from epo_jax.report.metrics import judge_agreement
from epo_jax.report.page import episodes, run_page
from epo_jax.report.page.curves import Metrics, curves
from epo_jax.report.page.episodes import COLUMNS, EpisodesFile, chosen_blocks
from epo_jax.report.page.health import health, held_out_falls, warnings
from epo_jax.report.page.run_page import RunPage
from epo_jax.report.page.token_texts import TokenTexts
from epo_jax.trajectory import Trajectory, Turn, read_jsonl, write_jsonl
from tests.model.real_tokenizers import sentencepiece_folder, smollm2_folder
from tests.report.page_runs import HOSTILE, MINI, demonstrations, episode, make_hostile_run, make_run, make_stepagent_run


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MINI)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("page") / "run", rounds=3, episodes=70, resumed_after=2, **{"learn.learning_rate": 1e-3})


def blocks_of(html: str) -> list:
    """The page's data, as a browser decodes it."""
    found = re.findall(r'<script type="application/octet-stream" class="block">([A-Za-z0-9+/=]+)</script>', html)
    return [json.loads(zlib.decompress(base64.b64decode(block))) for block in found]


# --- tokens -----------------------------------------------------------------------------------------------------------------------------------


STRATEGIES = ("Thought: go to cabinet 2.", "naïve café 👩‍🚀 日本", "  spaces   and\nlines", "<|end|></s> in text")


def tokenizer_named(name: str, scratch: pathlib.Path) -> Tokenizer:
    folders = {"mini": lambda: MINI, "smollm2": lambda: smollm2_folder(scratch), "mistral v1": lambda: sentencepiece_folder(scratch / "v1", "v1")}
    return Tokenizer.load(folders[name]())


@pytest.mark.parametrize("name", ["mini", pytest.param("smollm2", marks=pytest.mark.slow), "mistral v1"])
def test_pieces_join_to_the_strategy(name: str, tmp_path: pathlib.Path) -> None:
    tokenizer = tokenizer_named(name, tmp_path)
    texts = TokenTexts(tokenizer)
    for text in STRATEGIES:
        ids = [*tokenizer.encode(text), min(tokenizer.stop_ids)]
        strategy = tokenizer.decode(ids).strip()
        pieces = texts.pieces(ids, strategy)
        assert len(pieces) == len(ids)
        assert all(isinstance(piece, int) for piece in pieces) or not text.isascii()  # ids alone, where no character is spread over tokens
        said = [texts.table[piece] if isinstance(piece, int) else piece for piece in pieces]
        assert "".join(said[:-1]).strip() == strategy  # all but the end of turn
        assert ids[-1] in texts.special


def test_a_token_that_the_tokenizer_does_not_have(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    assert texts.pieces([5, 10**9], "") is None and texts.pieces([5, "x"], "") is None and texts.unknown == 2


def test_padding_of_the_model_s_vocabulary_is_shown_by_its_number(tokenizer: Tokenizer) -> None:
    texts, padding = TokenTexts(tokenizer), tokenizer.vocab_size + 3
    ids = [*tokenizer.encode("go to"), padding]
    assert texts.pieces(ids, tokenizer.decode(ids).strip()) == ids
    assert texts.table[padding] == f"<{padding}>" and padding in texts.special and texts.unknown == 0


# --- the data ---------------------------------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_episode(run_folder: pathlib.Path) -> None:
    data, *blocks = blocks_of(RunPage(run_folder).html())
    index = data["episodes"]
    assert [file["name"] for file in index["files"]] == [
        "evaluation/round_000.jsonl",
        *(f"trajectories/round_{number:03d}.jsonl" for number in range(3)),
        "evaluation/round_003.jsonl",
    ]
    for file in index["files"]:
        played = read_jsonl(run_folder / file["name"])
        assert len(played) == len(file["rows"])
        for place, (trajectory, row) in enumerate(zip(played, file["rows"], strict=True)):
            told = dict(zip(COLUMNS, row, strict=True))
            assert (told["task"], told["environment"], told["turns"]) == (trajectory.task_id, trajectory.environment, len(trajectory.turns))
            assert told["reward"] == pytest.approx(trajectory.outcome) and bool(told["success"]) == trajectory.success
            conversation = blocks[file["first_block"] + place // index["block"] - 1][place % index["block"]]
            for turn, kept in zip(trajectory.turns, conversation["turns"], strict=True):
                said = "".join(index["tokens"][str(token)] for token in kept["said"] if token not in index["special"])
                assert said.strip() == turn.strategy and kept["action"] == turn.action and kept["seen"] == turn.observation
                assert [-value / 100 for value in kept["logprobs"]] == pytest.approx(turn.logprobs, abs=0.00501)
                assert kept.get("advantage") == turn.advantage


def test_evaluations_have_the_figures_of_evaluation(run_folder: pathlib.Path) -> None:
    data = blocks_of(RunPage(run_folder).html())[0]
    before, after = (read_jsonl(run_folder / "evaluation" / name) for name in ("round_000.jsonl", "round_003.jsonl"))
    found = {each["title"]: each["rows"] for each in data["evaluations"]}
    for title, figure in (("alfworld: success", "success"), ("alfworld: mean reward", "reward")):
        first, last = found[title]
        values = [values_of(each, "alfworld", figure) for each in (before, after)]
        result, change = estimate(list(values[1].values())), paired_difference(*values)
        assert "difference" not in first and first["n"] == 8
        assert (last["mean"], last["low"], last["high"]) == (result.mean, result.low, result.high)
        assert (last["difference"], last["difference_low"], last["difference_high"]) == (change.mean, change.low, change.high)


def test_what_differs_from_the_preset_and_where_the_run_was_resumed(run_folder: pathlib.Path) -> None:
    data = blocks_of(RunPage(run_folder).html())[0]
    assert data["origin"]["preset"] == "configs/alfshop.py"
    assert [field[:3] for field in data["origin"]["config"] if field[3]] == [["learn.learning_rate", "0.001", "0.0002"], ["rounds", "3", "10"]]
    assert data["curves"]["round"]["resumes"] == [2.5] and data["curves"]["step"]["resumes"] == [4.5]
    assert [start["time"][11:19] for start in data["origin"]["starts"]] == ["10:00:00", "10:02:30"]


def test_a_configuration_named_in_a_file_is_not_run(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "evil.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')")
    for command in (
        f"train.py --config={tmp_path}/configs/evil.py",
        "train.py --config=configs/../evil.py:x",
        "train.py --config='",
        "--config=configs/alfshop.py:nothing",
    ):
        (folder / "provenance.jsonl").write_text(json.dumps({"time": "?", "command": command}) + "\n")
        assert blocks_of(RunPage(folder).html())[0]["origin"]["preset"] == "configs/defaults.py"
    assert not (tmp_path / "harmed").exists()


def test_metrics_count_the_later_row_and_leave_the_torn_one_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"kind": "step", "step": step, "time": time, "loss": loss}
        for step, time, loss in ((1, 1.0, 5.0), (2, 2.0, 4.0), (2, 9.0, 3.0), (3, 10.0, None))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "st')
    unreadable: list[str] = []
    (chart,) = curves(Metrics.read(path, unreadable), [], [])["step"]["charts"]
    assert chart["lines"] == [{"label": "", "points": [[1, 5.0], [2, 3.0]]}] and unreadable == []


def test_a_damaged_line_is_told_by_its_number_and_the_rest_is_shown(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    for name in ("metrics.jsonl", "provenance.jsonl"):
        lines = (folder / name).read_text().splitlines()
        whole = {"kind": "step"} if name == "metrics.jsonl" else 5
        (folder / name).write_text("\n".join([lines[0], "no JSON", json.dumps(whole), *lines[1:]]) + "\n")
    data = blocks_of(RunPage(folder).html())[0]
    told = data["health"]["unreadable"]
    assert [re.match(r"line (\d) of .*/(\w+)\.jsonl ", each).groups() for each in told] == [
        ("2", "metrics"), ("3", "metrics"), ("2", "provenance"), ("3", "provenance")
    ]  # fmt: skip
    assert data["run"]["done"] == 2 and len(data["origin"]["starts"]) == 1


def test_speed_by_step_is_known_where_nothing_came_between(tmp_path: pathlib.Path) -> None:
    """Neither over the play between two rounds nor over a pause between two starts."""
    path = tmp_path / "metrics.jsonl"
    times = [("step", 1, 10.0), ("step", 2, 12.0), ("step", 3, 13.0), ("round", 1, 13.5), ("step", 4, 30.0), ("step", 5, 34.0), ("step", 6, 99.0)]
    rows = [{"kind": kind, "step": step, "time": 1795219200 + when, "read_tokens": 100.0} for kind, step, when in times]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [{"time": "2026-11-21T00:00:00+0000"}, {"time": "2026-11-21T00:01:30+0000"}]
    axis = curves(Metrics.read(path, []), [], starts)["step"]
    assert axis["resumes"] == [5.5]
    (chart,) = axis["charts"]
    assert (chart["title"], chart["lines"][0]["points"]) == ("Tokens a second, learning", [[2, 50.0], [3, 100.0], [5, 25.0]])


def checkpoint(folder: pathlib.Path, number: int, **position: object) -> None:
    path = folder / "checkpoints" / f"step_{number:010d}" / "checkpoint.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"record": {"position": {"phase": "rounds", "steps": 0, "best": [], **position}}}))


def test_the_result_is_the_best_round_where_the_run_keeps_it(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    def result(folder: pathlib.Path) -> str:
        return blocks_of(RunPage(folder).html())[0]["origin"]["lineage"][-1][1]

    folder = make_run(tmp_path / "run", rounds=3)
    (folder / "strategist").mkdir()
    assert result(folder) == "after the last round"
    checkpoint(folder, 1, round=1, steps_before=16)
    checkpoint(folder, 2, round=3, steps_before=48, best=[{"round": 1, "outcome": 0.9, "step": 1}, {"round": 0, "outcome": 0.1, "step": 1}])
    assert result(folder) == "the best: after round 1 (step-16)"
    checkpoint(folder, 3, round=3, steps_before=48, best=[{"round": 3, "outcome": 0.95, "step": 2}])  # as a run leaves whose last round is the best
    assert result(folder) == "the best: after round 3 (step-48)"


def test_who_was_met_is_told_by_the_rounds_it_had_learned_from(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=3)
    names = (("round 0", "round 0"), ("round 1", "round 1"), ("self", "step-4"))
    met = [{"strategist": name, "weights": weights, "actor": "literal"} for name, weights in names]
    played = [episode(tokenizer, seed, weights_version="step-4", extra={"partner": partner}) for seed, partner in enumerate(met)]
    write_jsonl(folder / "trajectories" / "round_002.jsonl", played)
    for done in (0, 1, 10):
        (folder / "opponents" / f"round-{done}").mkdir(parents=True)
    data = blocks_of(RunPage(folder).html())[0]
    file = next(each for each in data["episodes"]["files"] if each["name"] == "trajectories/round_002.jsonl")
    before, after = "before the first round", "after round 1 (step-2)"
    told = [row[COLUMNS.index("partner")] for row in file["rows"]]
    assert told == [[before, before, "literal"], [after, after, "literal"], ["self", "step-4", "literal"]]
    kept = [each[1] for each in data["origin"]["lineage"] if each[0] == "kept as an opponent"]
    assert kept == [before, after, "after round 10"]


def test_a_conversation_s_goal_has_its_curve(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=1)
    for name, outcome in (("evaluation/round_000", 0.25), ("evaluation/round_001", 0.5), ("trajectories/round_000", 0.75)):
        write_jsonl(folder / f"{name}.jsonl", [episode(tokenizer, 1, environment="sotopia", outcome=outcome, success=False)])
    charts = {chart["title"]: chart["lines"] for chart in blocks_of(RunPage(folder).html())[0]["curves"]["round"]["charts"]}
    assert "sotopia: mean reward" not in charts
    assert [(line["label"], line["points"]) for line in charts["sotopia: goal (0 to 10)"]] == [
        ("training tasks", [[1, 7.5]]), ("held-out tasks", [[0, 2.5, 2.5, 2.5], [1, 5.0, 5.0, 5.0]])
    ]  # fmt: skip


def test_demonstrations_are_the_expert_s(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=1, **{"credit.estimator": "bc"})
    write_jsonl(folder / "trajectories" / "round_000.jsonl", demonstrations(tokenizer))
    data = blocks_of(RunPage(folder).html())[0]
    assert [file["demonstrated"] for file in data["episodes"]["files"]] == [False, True, False]
    charts = {chart["title"]: [line["label"] for line in chart["lines"]] for chart in data["curves"]["round"]["charts"]}
    assert charts["alfworld: success"] == ["expert, demonstrations", "held-out tasks"]
    assert charts["Turns an episode"] == ["expert, demonstrations"] and charts["Gradient norm"] == [""]
    assert ["round 1", "an expert", "played trajectories/round_000.jsonl"] in data["origin"]["lineage"]


def test_long_lines_are_thinned_by_means() -> None:
    rows = {step: {"loss": float(step % 3)} for step in range(1, 6001)}
    (chart,) = curves(Metrics({"step": rows}, []), [], [])["step"]["charts"]
    assert chart["lines"][0]["points"] == [[step, 1.0] for step in range(3, 6001, 3)]


def test_what_a_policy_would_have_done_in_the_place_of_an_expert(tmp_path: pathlib.Path) -> None:
    data, *blocks = blocks_of(RunPage(make_stepagent_run(tmp_path / "run")).html())
    files = data["episodes"]["files"]
    assert [(file["phase"], file["round"], len(file["rows"])) for file in files] == [
        ("evaluation", 0, 8), ("inspection", 1, 2), ("states", 1, 4), ("evaluation", 1, 8)
    ]  # fmt: skip
    first = blocks[1][0]
    assert [turn.get("instead", {}).get("same") for turn in first["turns"]] == [0, 1, None]
    assert len(first["turns"][0]["instead"]["said"]) == len(first["turns"][0]["instead"]["logprobs"])
    assert all(set(turn) <= {"said", "action", "seen", "instead"} for turn in first["turns"])  # its advantage of 1 is a demonstration's
    success, reward = COLUMNS.index("success"), COLUMNS.index("reward")
    assert all(row[success] is None and row[reward] is None for row in files[2]["rows"])  # nobody played them on
    assert [block["turns"][0]["advantage"] for block in blocks[2]] == [-1.5, -0.5, 0.5, 1.5]
    success = [chart for chart in data["curves"]["round"]["charts"] if chart["title"].endswith("success")]
    assert success and all(line["held_out"] for chart in success for line in chart["lines"])
    played = blocks_of(RunPage(make_stepagent_run(tmp_path / "played", reflect_on="episodes")).html())[0]["episodes"]["files"]
    assert [file["phase"] for file in played] == ["evaluation", "inspection", "round", "evaluation"]


@pytest.mark.parametrize("inspected", [3, [3], [{"tokens": [1], "logprobs": [0.0]}], [{"tokens": ["x"], "logprobs": [], "text": ""}]])
def test_inspections_that_are_none_are_told(inspected: object, tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    write_jsonl(tmp_path / "cycle_000.jsonl", [episode(tokenizer, 1, extra={"inspected": inspected})])
    with pytest.raises(UserError, match="line 1 of .* holds a text that is no text"):
        episodes.read(tmp_path / "cycle_000.jsonl", "inspection", 1, TokenTexts(tokenizer), None)


def test_a_turn_beyond_the_longest_length_is_told(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "round_000.jsonl"
    write_jsonl(
        path, [Trajectory("alfworld", "a", turns=[Turn(prompt_tokens=[5] * 6, tokens=[6] * 4, strategy="?", advantage=1.0) for _ in range(4)])]
    )
    (block,) = episodes.read(path, "round", 1, TokenTexts(tokenizer), 25).blocks
    assert json.loads(zlib.decompress(block))[0]["fits"] == 2


def test_of_too_much_the_page_keeps_some_of_every_round() -> None:
    files = [
        EpisodesFile(f"f{number}", "round", number, [], [b"x" * size for size in sizes], {}, {}, {})
        for number, sizes in enumerate(([5, 5, 5], [5], [5, 5]))
    ]
    assert chosen_blocks(files, 1000) == [{0, 1, 2}, {0}, {0, 1}]
    assert chosen_blocks(files, 21) == [{0}, {0}, {0, 1}]
    assert chosen_blocks(files, 4) == [set(), set(), set()]


# --- the rules --------------------------------------------------------------------------------------------------------------------------------

WELL = {
    "entropy": 0.3, "repeated_token_share": 0.02, "strategy_tokens": 9.0, "strategies_cut_off": 0.0, "judge_agreement": 0.9,
    "advantage_nonzero_share": 0.9, "episodes": 100, "masked": 1, "logprob_gap": 1e-6, "loss": -0.1, "grad_norm": 0.3, "ended_by_context": 0.0,
    "kl": 0.01,
}  # fmt: skip


def test_nothing_is_said_of_a_run_that_is_well() -> None:
    assert warnings({number: WELL | {"entropy": 0.3 - 0.01 * number, "strategy_tokens": 9.0 + 0.5 * number} for number in range(1, 11)}) == []
    assert warnings({}) == [] and warnings({1: {}}) == []
    assert warnings({1: WELL | {"kl": 20.0, "agreement": 0.6}}) == []  # StepAgent


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("collapse: entropy falls", {"entropy": 0.05}),
        ("collapse: strategies repeat themselves", {"repeated_token_share": 0.6}),
        ("strategies grow long", {"strategy_tokens": 30.0}),
        ("strategies are cut off", {"strategies_cut_off": 0.8}),
        ("the judge agrees less with the outcome", {"judge_agreement": 0.6}),
        ("all advantages are zero", {"advantage_nonzero_share": 0.0}),
        ("few advantages are not zero", {"advantage_nonzero_share": 0.05}),
        ("many episodes are masked", {"masked": 20}),
        ("sampler and learner disagree", {"logprob_gap": 0.2}),
        ("the learner runs away from what sampled", {"kl": 0.32}),
        ("loss or gradient is not a number", {"grad_norm": None}),
        ("episodes end by a full context", {"ended_by_context": 0.4}),
    ],
)
def test_each_rule_speaks_of_its_own_fault_alone(name: str, broken: dict) -> None:
    (warning,) = warnings({1: WELL, 2: WELL, 3: WELL | broken})
    assert (warning["name"], warning["rounds"]) == (name, [3]) and warning["what"] and warning["do"]


def test_held_out_tasks_that_go_worse_are_told_and_noise_is_not(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=2)

    def evaluated(won: int) -> list[Trajectory]:
        outcomes = [float(task < won) for task in range(40)]
        return [
            episode(tokenizer, task, learned=False, environment="alfworld", task_id=f"eval/{task}", outcome=outcome, success=outcome == 1.0)
            for task, outcome in enumerate(outcomes)
        ]

    write_jsonl(folder / "evaluation" / "round_000.jsonl", evaluated(30))
    for won, told in ((29, []), (31, []), (10, ["held-out tasks go worse than at first (alfworld: success)"])):
        write_jsonl(folder / "evaluation" / "round_002.jsonl", evaluated(won))
        warnings = blocks_of(RunPage(folder).html())[0]["health"]["warnings"]
        assert [each["name"] for each in warnings] == told
    assert warnings[0]["rounds"] == [2] and warnings[0]["what"].startswith("\u221250.0 points [\u22126")


def test_a_difference_that_is_no_share_is_told_with_three_decimals() -> None:
    row = {"round": 2, "shares": False, "difference": -0.0462, "difference_low": -0.0871, "difference_high": -0.0049}
    (warning,) = held_out_falls([{"title": "webshop: mean reward", "rows": [row]}])
    assert warning["what"] == "\u22120.046 [\u22120.087, \u22120.005], paired by task"


def failed(tokenizer: Tokenizer, reason: str, *, seed: int = 0, count: int = 4) -> list[Trajectory]:
    played = [episode(tokenizer, seed + task, turns=0, environment="alfworld", outcome=0.0, task_id=f"eval/{task}") for task in range(count)]
    for one in played:
        one.masked = reason
    return played


def test_an_evaluation_of_which_every_episode_failed_keeps_its_row(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    write_jsonl(folder / "evaluation" / "round_002.jsonl", failed(tokenizer, "actor failed: ValueError: ?"))
    data = blocks_of(RunPage(folder).html())[0]
    for table in data["evaluations"]:
        assert [(row["round"], row["mean"] is None, row["n"]) for row in table["rows"]] == [(0, False, 8), (2, True, 0)]
    (warning,) = data["health"]["warnings"]
    assert (warning["name"], warning["rounds"]) == ("every episode of an evaluation failed (alfworld)", [2])
    write_jsonl(folder / "evaluation" / "round_000.jsonl", failed(tokenizer, "actor failed: ValueError: ?"))
    (table,) = blocks_of(RunPage(folder).html())[0]["evaluations"]
    assert table["title"] == "alfworld: success" and [row["mean"] for row in table["rows"]] == [None, None]


@pytest.mark.parametrize(("actor", "blamed"), [("literal", False), ("openai", True)])
def test_a_server_is_blamed_only_where_there_is_one(actor: str, blamed: bool, tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder = make_run(tmp_path / "run", rounds=1, actor=actor)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "round", "step": 1, "time": 1795219999, "episodes": 4, "masked": 4}) + "\n")
    write_jsonl(folder / "trajectories" / "round_000.jsonl", failed(tokenizer, "actor failed: FloatingPointError: the model's logits are not finite"))
    told = {warning["name"]: warning for warning in blocks_of(RunPage(folder).html())[0]["health"]["warnings"]}
    numbers, masked = told["weights or logits are not finite"], told["many episodes are masked"]
    assert numbers["rounds"] == [1] and "smaller learn.learning_rate" in numbers["do"] and ("server" in masked["do"]) == blamed


def test_compilations_are_counted_anew_by_a_resumed_run() -> None:
    found = health(
        {number: {"compilations": count, "prefill_share": 0.25} for number, count in enumerate((20.0, 22.0, 22.0, 18.0), start=1)}, [], [], []
    )["rounds"]
    assert [heading for heading, _ in found["columns"]] == ["prompt kept in KV cache", "compilations"]
    assert [row[1:] for row in found["rows"]] == [[0.75, 20.0], [0.75, 2.0], [0.75, 0.0], [0.75, 18.0]]


def test_judge_agreement_counts_pairs() -> None:
    number = random.Random(1)
    played = [
        Trajectory(
            environment,
            str(index),
            outcome=number.choice([0.0, 0.5, 1.0]),
            turns=[Turn(process_reward=number.choice([0.0, 0.5, 1.0])) for _ in range(2)],
        )
        for index, environment in enumerate(["alfworld", "webshop"] * 20)
    ]
    agreeing = pairs = 0.0
    for one, other in itertools.combinations(played, 2):
        if one.environment == other.environment and one.outcome != other.outcome:
            worse, better = sorted((one, other), key=lambda trajectory: trajectory.outcome)
            gap = sum(turn.process_reward for turn in better.turns) - sum(turn.process_reward for turn in worse.turns)
            agreeing, pairs = agreeing + (gap > 0) + 0.5 * (gap == 0), pairs + 1
    assert judge_agreement(played) == pytest.approx(agreeing / pairs)
    assert math.isnan(judge_agreement(played[:1])) and math.isnan(judge_agreement([Trajectory("a", "b", turns=[Turn()])]))


# --- the file ---------------------------------------------------------------------------------------------------------------------------------


def test_its_policy_allows_its_own_program_and_style_alone(run_folder: pathlib.Path) -> None:
    html = RunPage(run_folder).html()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    for pattern, name in ((r'<script type="module">(.*?)</script>', "script-src"), (r"<style>(.*?)</style>", "style-src")):
        (text,) = re.findall(pattern, html, re.DOTALL)
        assert f"{name} 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src" not in policy
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_nothing_that_the_run_says_stands_in_the_file_as_it_is(tmp_path: pathlib.Path) -> None:
    html = RunPage(make_hostile_run(tmp_path / "run")).html()
    assert "harmed" not in html and "\u202e" not in html
    assert html.count("<script") == html.count("</script") == 1 + len(blocks_of(html))
    conversation = blocks_of(html)[2][0]  # the blocks: the index, the evaluation before, the round
    assert conversation["turns"][1]["said"] == conversation["first"] == HOSTILE[0]


def test_writing_it_again_reads_what_is_new_alone(tmp_path: pathlib.Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    read: list[str] = []
    monkeypatch.setattr(run_page, "read", lambda path, *rest: read.append(path.name) or episodes.read(path, *rest))
    page = RunPage(folder)
    first, path = page.fingerprint(), page.write()
    assert path == folder / "page.html" and len(read) == 4 and page.fingerprint() == first
    write_jsonl(folder / "trajectories" / "round_002.jsonl", [episode(tokenizer, 1)])
    read.clear()
    assert page.fingerprint() != first
    before = path.stat().st_size
    page.write()
    assert read == ["round_002.jsonl"] and path.stat().st_size > before
    assert not list(folder.glob(".*partial"))


def test_a_damaged_file_is_told_and_the_rest_shown(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run", rounds=2)
    (folder / "trajectories" / "round_000.jsonl").write_text("no JSON\n")
    record = read_jsonl(folder / "trajectories" / "round_001.jsonl")[0].to_dict()
    (folder / "trajectories" / "round_001.jsonl").write_text(json.dumps(record | {"outcome": math.inf}) + "\n")
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    data = blocks_of(RunPage(folder).html())[0]
    assert [file["name"] for file in data["episodes"]["files"]] == ["evaluation/round_000.jsonl", "evaluation/round_002.jsonl"]
    told = data["health"]["unreadable"]
    assert len(told) == 3 and "Tokens are not shown" in told[0] and "round_000.jsonl" in told[1] and "no number" in told[2]


def test_no_run_no_page(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        RunPage(tmp_path).write()
    RunPage(tmp_path).write_or_say_why_not()
    assert "the run's page was not written: there is no run" in capsys.readouterr().out
    monkeypatch.setattr(RunPage, "html", lambda self: {}["what nobody thought of"])
    RunPage(tmp_path).write_or_say_why_not()
    assert "not written (KeyError: 'what nobody thought of')" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []
