"""What can go wrong in a run, seen early: warnings by rules over the rounds' figures, what failed, and what was compiled and cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from epo_jax.report.page.comparisons import Table
from epo_jax.report.page.curves import is_number
from epo_jax.report.page.episodes import EpisodesFile

# Each rule compares with the first round that has the figure. They are meant to speak before it is too late, and not of noise.
ENTROPY_LEFT = 0.3  # of the first round's
MORE_REPEATED = 0.15  # share of tokens
LONGER = 2.0  # times the first round's strategy length
LONGER_BY = 8.0  # tokens, at least
CUT_OFF = 0.5  # share of strategies
AGREEMENT_LOST = 0.2  # a round of 50 episodes varies by 0.1
MASKED = 0.05  # share of episodes
GAP = 0.05  # nats
FEW_ADVANTAGES = 0.1  # share of turns
FULL_CONTEXT = 0.2  # share of episodes
NOT_FINITE = ("FloatingPointError", "NotFinite", "not finite")  # in the reason of a masked episode
MANY_MASKED = "many episodes are masked"
NO_NUMBERS, NO_EVALUATION = "weights or logits are not finite", "every episode of an evaluation failed"
WORSE = "held-out tasks go worse than at first"
FAR = 0.2  # nats a token between the learner and what sampled, over a round's steps; well-behaved runs stay below 0.01

Figures = Mapping[str, Any]
Warning = dict[str, Any]  # {"name", "rounds", "what", "do"}


def warnings(rounds: Mapping[int, Figures]) -> list[Warning]:
    """One for each rule that any round breaks: the rounds, what was seen in the last of them, and what usually helps."""
    found = []
    for name, broken, do in RULES:
        hits = {number: what for number, row in rounds.items() if (what := broken(row, rounds)) is not None}
        if hits:
            found.append({"name": name, "rounds": list(hits), "what": hits[max(hits)], "do": do})
    return found


def held_out_falls(evaluations: Sequence[Table]) -> list[Warning]:
    """One for each figure of held-out tasks (`comparisons.of_run`) whose paired difference to the first evaluation has an interval below zero."""
    found = []
    for table in evaluations:
        worse = [row for row in table["rows"] if row.get("difference_high", 0.0) < 0.0]
        if worse:
            last, scale, unit, form = worse[-1], *((100, " points", "+.1f") if worse[-1]["shares"] else (1, "", "+.3f"))
            mean, low, high = (f"{scale * last[name]:{form}}" for name in ("difference", "difference_low", "difference_high"))
            what = f"{mean}{unit} [{low}, {high}]"
            found.append(
                {
                    "name": f"{WORSE} ({table['title']})",
                    "rounds": [row["round"] for row in worse],
                    "what": f"{what}, paired by task".replace("-", "\u2212"),
                    "do": "Read one side by side, before and after; go back to the best round (checkpoint.keep_best); lower learn.learning_rate.",
                }
            )
    return found


def failed_evaluations(evaluations: Sequence[Table]) -> list[Warning]:
    """One for each environment with an evaluation (`comparisons.of_run`) that has no figures."""
    found = {}
    for table in evaluations:
        if rounds := [row["round"] for row in table["rows"] if row["mean"] is None]:
            environment = table["title"].partition(":")[0]
            found[environment] = {
                "name": f"{NO_EVALUATION} ({environment})",
                "rounds": rounds,
                "what": "the evaluation has no figures; those before it say nothing about these weights",
                "do": "The reasons stand below. Mend what they name; a checkpoint can be evaluated again with epo_jax.evaluate.",
            }
    return list(found.values())


def not_finite(files: Sequence[EpisodesFile]) -> list[Warning]:
    """One where episodes were masked because the model's numbers are none."""
    broken = {file.round: 0 for file in files}
    for file in files:
        broken[file.round] += sum(count for reason, count in file.masked.items() if any(sign in reason for sign in NOT_FINITE))
    rounds = [round for round, count in broken.items() if count]
    what = f"{broken[rounds[-1]]} episodes could not be played for it" if rounds else ""
    do = (
        "Training has diverged: remove the newest checkpoints, so that the same command goes back to the one before; begin anew with a smaller "
        "learn.learning_rate."
    )
    return [{"name": NO_NUMBERS, "rounds": rounds, "what": what, "do": do}] if rounds else []


def health(
    rounds: Mapping[int, Figures],
    files: Sequence[EpisodesFile],
    evaluations: Sequence[Table],
    unreadable: Sequence[str],
    *,
    asks_api: bool = False,
) -> dict[str, Any]:
    """{"warnings", "masked": [[file, episodes, reason], …], "rounds": {"columns", "rows"}, "unreadable": sentences}.

    asks_api: whether a model behind an API plays a part, whose server may be what failed.
    """
    found = [*not_finite(files), *warnings(rounds), *failed_evaluations(evaluations), *held_out_falls(evaluations)]
    for warning in found:
        if asks_api and warning["name"] == MANY_MASKED:
            warning["do"] += " A server may be overloaded, or a key or a budget spent."
    return {
        "warnings": found,
        "masked": [[file.name, count, reason] for file in files for reason, count in file.masked.items()],
        "rounds": _work_table(rounds),
        "unreadable": list(unreadable),
    }


# figure, heading, how numbers read
_WORK = (
    ("episodes", "episodes", "count"),
    ("masked", "masked", "count"),
    ("judge_failed", "judge failed", "count"),
    ("ended_by_context", "context full", "percent"),
    ("strategies_cut_off", "strategies cut off", "percent"),
    ("dropped_turns", "turns not learned from", "count"),
    ("kept_share", "prompt kept in KV cache", "percent"),
    ("padding_share", "padding", "percent"),
    ("new_compilations", "compilations", "count"),
    ("api_actor_cached_share", "actor: from cache", "percent"),
    ("api_actor_retries", "actor: retries", "count"),
    ("api_judge_cached_share", "judge: from cache", "percent"),
    ("api_judge_retries", "judge: retries", "count"),
)


def _work_table(rounds: Mapping[int, Figures]) -> dict[str, Any]:
    before = 0.0
    rows = []
    for number, row in rounds.items():
        row = dict(row)
        if is_number(row.get("prefill_share")):
            row["kept_share"] = 1.0 - row["prefill_share"]
        if is_number(compiled := row.get("compilations")):  # counted since the start of the process, so a resumed run begins again
            row["new_compilations"] = compiled - before if compiled >= before else compiled
            before = compiled
        rows.append((number, row))
    columns = [each for each in _WORK if any(is_number(row.get(each[0])) for _, row in rows)]
    return {
        "columns": [[heading, form] for _, heading, form in columns],
        "rows": [[number, *(row[name] if is_number(row.get(name)) else None for name, _, _ in columns)] for number, row in rows],
    }


# --- the rules: what a round's figures say when it is broken, else None ---------------------------------------------------------------------


def _first(name: str, rounds: Mapping[int, Figures]) -> float | None:
    return next((row[name] for row in rounds.values() if is_number(row.get(name))), None)


def _pair(name: str, row: Figures, rounds: Mapping[int, Figures]) -> tuple[float, float] | None:
    """(first, now), where both are known."""
    first, now = _first(name, rounds), row.get(name)
    return (first, now) if first is not None and is_number(now) else None


def _entropy_fell(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    pair = _pair("entropy", row, rounds)
    return f"entropy {pair[1]:.3f} nats a token, {pair[0]:.3f} in the first round" if pair and pair[1] < ENTROPY_LEFT * pair[0] else None


def _repeats(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    pair = _pair("repeated_token_share", row, rounds)
    return f"{pair[1]:.0%} of a strategy's tokens repeat, {pair[0]:.0%} in the first round" if pair and pair[1] > pair[0] + MORE_REPEATED else None


def _longer(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    pair = _pair("strategy_tokens", row, rounds)
    grown = pair is not None and pair[1] > max(LONGER * pair[0], pair[0] + LONGER_BY)
    return f"{pair[1]:.1f} tokens a strategy, {pair[0]:.1f} in the first round" if grown else None


def _cut_off(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    share = row.get("strategies_cut_off")
    return f"{share:.0%} of the strategies met rollout.max_strategy_tokens" if is_number(share) and share > CUT_OFF else None


def _agrees_less(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    pair = _pair("judge_agreement", row, rounds)
    fell = pair is not None and pair[1] < pair[0] - AGREEMENT_LOST
    return f"the judge ranks {pair[1]:.0%} of the pairs as their outcomes do, {pair[0]:.0%} in the first round" if fell else None


def _no_advantages(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    share = row.get("advantage_nonzero_share")
    return "all advantages are zero" if is_number(share) and share == 0.0 else None


def _few_advantages(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    share = row.get("advantage_nonzero_share")
    return f"{share:.1%} of the advantages are not zero" if is_number(share) and 0.0 < share < FEW_ADVANTAGES else None


def _masked(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    episodes, masked = row.get("episodes"), row.get("masked")
    many = is_number(episodes) and is_number(masked) and episodes > 0 and masked / episodes > MASKED
    return f"{masked:.0f} of {episodes:.0f} episodes are masked" if many else None


def _gap(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    gap = row.get("logprob_gap")
    return f"{gap:.3f} nats between sampler and learner before any step" if is_number(gap) and gap > GAP else None


def _runs_away(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    if "agreement" in row:  # StepAgent's pairs are to move apart
        return None
    kl = row.get("kl")
    return f"{kl:.2f} nats a token between the learner and what sampled, over the round's steps" if is_number(kl) and kl > FAR else None


def _not_finite(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    bad = [name for name in ("loss", "grad_norm") if name in row and not is_number(row[name])]
    return f"{' and '.join(bad)} not finite" if bad else None


def _context(row: Figures, rounds: Mapping[int, Figures]) -> str | None:
    share = row.get("ended_by_context")
    return f"{share:.0%} of the episodes ended by a full context" if is_number(share) and share > FULL_CONTEXT else None


RULES = (
    ("loss or gradient is not a number", _not_finite, "Go back to the checkpoint before; lower learn.learning_rate, or learn.clip_norm."),
    (
        "collapse: entropy falls",
        _entropy_fell,
        "Lower learn.learning_rate; set learn.entropy_weight or learn.kl_weight; clip with learn.clip_low and learn.clip_high.",
    ),
    (
        "the learner runs away from what sampled",
        _runs_away,
        "What it learns from is no longer its own: lower learn.learning_rate or learn.epochs; set learn.kl_weight; clip (learn.clip_low, clip_high).",
    ),
    ("collapse: strategies repeat themselves", _repeats, "Go back to an earlier checkpoint; lower learn.learning_rate; set learn.kl_weight."),
    ("strategies grow long", _longer, "Look at what the judge picks; lower rollout.max_strategy_tokens; set learn.kl_weight."),
    ("strategies are cut off", _cut_off, "Raise rollout.max_strategy_tokens, or read a few strategies: they may not end at all."),
    (
        "the judge agrees less with the outcome",
        _agrees_less,
        "The strategist may have learned to please the judge: read what is picked; lower credit.process_weight.",
    ),
    ("all advantages are zero", _no_advantages, "Nothing was learned: every episode earned alike. Play easier or more tasks, or another estimator."),
    ("few advantages are not zero", _few_advantages, "Most of the round teaches nothing: play more tasks, or larger groups."),
    (MANY_MASKED, _masked, "The reasons stand below."),
    ("sampler and learner disagree", _gap, "What is trained is not what was sampled: use one compute dtype, and report it if it stays."),
    ("episodes end by a full context", _context, "Raise rollout.max_context, or shorten prompts."),
)
