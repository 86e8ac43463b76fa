"""The work that bench_generate.py gives to every side: recorded conversations whose generated part has a fixed length.

What the environment says is fixed text of households that an expert played, and every turn samples the same number of tokens, with no
token that would end it. So all sides read and write equally many tokens, whatever they sample, and histories have unequal lengths.
"""

from __future__ import annotations

import dataclasses
import itertools

import envs
from epo_jax.errors import UserError
from epo_jax.model.conversation import ConversationFormat
from epo_jax.rollout import literal, prompts


@dataclasses.dataclass(frozen=True)
class Episode:
    """opening: tokens before the first sample; replies: tokens between one sample and the next."""

    opening: list[int]
    replies: list[list[int]]

    def pieces(self) -> list[list[int]]:
        """What is new to read before each sample, one list a turn."""
        return [self.opening, *self.replies]


@dataclasses.dataclass(frozen=True)
class Script:
    """episodes: all of equally many turns; new_tokens: sampled in every turn."""

    episodes: list[Episode]
    new_tokens: int

    @property
    def turns(self) -> int:
        return 1 + len(self.episodes[0].replies)

    @property
    def sampled_tokens(self) -> int:
        """In all."""
        return len(self.episodes) * self.turns * self.new_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens before each sample, as one who remembers nothing reads them."""
        total = 0
        for episode in self.episodes:
            history = 0
            for piece in episode.pieces():
                history += len(piece)
                total += history
                history += self.new_tokens
        return total

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation, its samples included."""
        return max(sum(map(len, episode.pieces())) for episode in self.episodes) + self.turns * self.new_tokens

    def shortened(self, episodes: int, turns: int) -> Script:
        """The same with fewer episodes and turns, to warm up with."""
        return Script([Episode(episode.opening, episode.replies[: turns - 1]) for episode in self.episodes[:episodes]], self.new_tokens)


def record(conversation: ConversationFormat, *, episodes: int, turns: int, new_tokens: int, prompt: str) -> Script:
    """Generated households as an expert plays them, those that last long enough. prompt: "brief" or "full" (with the worked example).

    Deterministic. Raises `UserError` where there are not enough households of so many turns.
    """
    environment, words = envs.make("alfworld"), prompts.load("alfworld", prompt)
    not_ended = [next(token for token in itertools.count() if token not in conversation.stop_ids)]
    recorded: list[Episode] = []
    for task in environment.tasks("generated:eval"):
        if len(recorded) == episodes:
            break
        opening = conversation.start(words.opening(environment.reset(task)))
        played = environment.demonstration(len(recorded), max_turns=turns, actor=literal.choose)
        if len(played) == turns:  # what follows the last sample is never read
            replies = [conversation.reply_and_continue(not_ended, words.after(action, observation)) for _, action, observation in played[:-1]]
            recorded.append(Episode(opening, replies))
    if len(recorded) < episodes:
        raise UserError(f"only {len(recorded)} households last {turns} turns: ask for fewer episodes or turns.")
    return Script(recorded, new_tokens)
