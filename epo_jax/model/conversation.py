"""A chat template taken apart, so that a conversation grows by appending tokens and nothing is ever rendered twice.

A chat template is a program that renders a whole conversation. What stands around the contents is learnt here by rendering conversations
whose contents are markers, and taking the text between the markers. The stream of one conversation is then

    start(messages)   sampled tokens   reply_and_continue(sampled, text)   sampled tokens   ...

where only the sampled tokens belong to the strategist. That needs the *prefix property*: a longer conversation's text must begin with the
shorter one's. It is checked when a format is made, over several probe conversations; a template without it is refused. White space that a
template trims from the ends of a message does no harm: messages from outside are trimmed as the template does it, and sampled tokens stay as
they were sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from epo_jax.errors import UserError
from epo_jax.model.tokenizer import Segment, Tokenizer
from epo_jax.trajectory import Trajectory

Messages = Sequence[dict[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}

# Contents that templates are known to treat unlike others.
_USER_PROBES = ("go north", "one line\nanother line", "  spaces around  ", "\n\nnew lines first", "{{ braces }} {% x %}", "CAPITALS, 1 é 日本", "[x] <b> 'q' \"r\"")
_REPLY_PROBES = ("Thought: look", "first\nsecond", "  spaces around  ", "\nnew line first\n", "{{ braces }}", "UPPER lower", "x<y 'q'")
_REASONING_PROBE = "<think>because</think>answer"
_PROBE_TURNS = 4


class ConversationFormat:
    """How a tokenizer's chat template writes turns.

    `stop_ids`: what ends a strategist's turn (the tokenizer's own, and the token that the template writes after a reply). `supports_system`: whether
    the template can keep a system message in place; where not, `start` puts its text before the first user message.
    Raises `UserError`, when made, for a template without the prefix property.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._tails: dict[tuple[str, str], tuple[str, str]] = {}
        self._read_template()
        self.end_of_turn_id = self._find_end_of_turn()
        self.stop_ids = tokenizer.stop_ids | ({self.end_of_turn_id} if self.end_of_turn_id is not None else set())
        self._check_prefix_property(system=False)
        try:
            self._check_prefix_property(system=True)
            self.supports_system = True
        except UserError:
            self.supports_system = False

    # --- growing a conversation ---------------------------------------------------------------------------------------------------------------

    def start(self, messages: Messages) -> list[int]:
        """Ids of the opening, ending where the strategist writes. The last message must be the user's."""
        return self.tokenizer.encode_segments(self._opening(messages), first=True)

    def reply_and_continue(self, sampled_ids: Sequence[int], user_text: str) -> list[int]:
        """Ids to append after a reply as it was sampled: the end of the turn if it was not sampled, the user's turn, and the ask for a reply.

        None of them is the strategist's, so none is trained on.
        """
        user_text = _encodable(user_text)
        lead, trail = _outer_white_space(user_text)
        before, after = self._tail(lead, trail)
        if self.end_of_turn_id is not None and sampled_ids and sampled_ids[-1] == self.end_of_turn_id:
            before = before[self.tokenizer.first_added_token(before)[1] :]
        segments = (Segment(before, True), Segment(user_text.strip(), False), Segment(after, True))
        return self.tokenizer.encode_segments(segments, first=False)

    def demonstration(self, text: str) -> list[int]:
        """Ids of a reply that was not sampled but given (cloning, published data): as the template writes it, end of turn included.

        Like a sampled reply it follows `start` or `reply_and_continue`, and `reply_and_continue` follows it.
        """
        said = (Segment(self._reply_lead, True), Segment(_encodable(text).strip(), False))
        if self.end_of_turn_id is None:
            return self.begin_reply(text) + [min(self.tokenizer.stop_ids)]
        end = self._between[: self.tokenizer.first_added_token(self._between)[1]]
        return self.tokenizer.encode_segments((*said, Segment(end, True)), first=False)

    def begin_reply(self, text: str) -> list[int]:
        """Ids that begin a reply with a given text, for the model to continue; they follow `start` or `reply_and_continue`."""
        return self.tokenizer.encode_segments((Segment(self._reply_lead, True), Segment(_encodable(text).strip(), False)), first=False)

    def text(self, ids: Sequence[int]) -> str:
        """What a sampled reply says: without special tokens and outer white space."""
        return self.tokenizer.decode(ids).strip()

    def fill_tokens(self, trajectory: Trajectory) -> None:
        """Give an imported trajectory (text only) its tokens, in place; log-probabilities stay empty: nobody sampled it.

        Reads `extra["messages"]` (the opening) and `extra["replies"]` (what followed each turn), as `published.from_published` leaves them.
        """
        opening = trajectory.extra.get("messages") or [{"role": "user", "content": trajectory.first_observation}]
        replies = trajectory.extra.get("replies") or [turn.observation for turn in trajectory.turns]
        prompt = self.start(opening)
        for turn, reply in zip(trajectory.turns, replies, strict=True):
            turn.prompt_tokens = prompt
            turn.tokens = self.demonstration(turn.strategy)
            turn.stop_reason = "stop"
            prompt = self.reply_and_continue(turn.tokens, reply)

    # --- reading the template -----------------------------------------------------------------------------------------------------------------

    def _opening(self, messages: Messages) -> list[Segment]:
        messages = [{"role": m["role"], "content": _encodable(m["content"])} for m in messages]
        if not messages or messages[-1]["role"] != "user":
            raise UserError("a conversation must open with messages of which the last is the user's: put the task there.")
        if not self.supports_system:
            messages = _system_into_user(messages)
        marked = []
        for index, message in enumerate(messages):
            lead, trail = _outer_white_space(message["content"])
            marked.append({"role": message["role"], "content": lead + _marker(index) + trail})
        text = self.tokenizer.render(marked, generation_prompt=True)
        pieces = _pieces(text, len(messages))
        pieces[-1] = self._cut_ask(pieces[-1])
        segments = []
        for piece, message in zip(pieces, messages):
            segments += [Segment(piece, True), Segment(message["content"].strip(), False)]
        return segments + [Segment(pieces[-1], True)]

    def _tail(self, lead: str, trail: str) -> tuple[str, str]:
        """Template text before and after the user's text that follows a reply; white space at the text's ends is the template's to keep or trim."""
        key = (lead, trail)
        if key not in self._tails:
            text = self.tokenizer.render(_dialogue([_marker(0), lead + _marker(2) + trail], [_marker(1)]), generation_prompt=True)
            _, _, before, after = _pieces(text, 3)
            if len(self._tails) > 256:
                self._tails.clear()
            self._tails[key] = (before, self._cut_ask(after))
        return self._tails[key]

    def _cut_ask(self, after_user: str) -> str:
        """What follows the last user text, up to where the strategist writes (derived where the template has no generation prompt)."""
        if self._ask_as_rendered == self._ask:
            return after_user
        if not after_user.endswith(self._ask_as_rendered):
            raise UserError("the chat template ends this conversation in an unforeseen way: use another model's template.")
        return after_user[: len(after_user) - len(self._ask_as_rendered)] + self._ask

    def _read_template(self) -> None:
        """Learn the texts between the messages.

        `_between`: from a reply to the next user text. `_earlier`: from a user text to the reply that follows it. `_ask`: from the last user text
        to where the strategist writes, `_ask_as_rendered` the same as the template renders it. Most templates write `_ask` as the beginning of
        `_earlier`; white space that an earlier reply has on top of it (Llama 2) is left to the strategist, whose vocabulary writes it as part
        of the first word: `_reply_lead`.
        """
        dialogue = _dialogue([_marker(0), _marker(2)], [_marker(1)])
        _, earlier, self._between, asked = _pieces(self.tokenizer.render(dialogue, generation_prompt=True), 3)
        _, first_asked = _pieces(self.tokenizer.render(dialogue[:1], generation_prompt=True), 1)
        not_asked = _pieces(self.tokenizer.render(dialogue, generation_prompt=False), 3)[-1]
        if first_asked != asked:
            raise _refusal("it asks for the first reply in another way than for later ones")
        self._earlier, self._ask, self._ask_as_rendered = earlier, asked, asked
        if earlier.startswith(asked) and not earlier[len(asked) :].strip():
            self._reply_lead = earlier[len(asked) :]
        elif asked.startswith(earlier) and not asked[len(earlier) :].strip():
            self._reply_lead = ""
        elif asked == not_asked and earlier.startswith(asked):  # no generation prompt: take the heading of earlier replies
            self._ask = earlier.rstrip(" ")
            self._reply_lead = earlier[len(self._ask) :]
        else:
            raise _refusal("it writes something else before an earlier reply than where it asks for a new one")

    def _find_end_of_turn(self) -> int | None:
        """The special token that the template writes after a reply, also after the last one."""
        found = self.tokenizer.first_added_token(self._between)
        if found is None:
            return None
        last = self.tokenizer.render(_dialogue([_marker(0)], [_marker(1)]), generation_prompt=False)
        return found[2] if _pieces(last, 2)[-1].startswith(self._between[: found[1]]) else None

    def _check_prefix_property(self, *, system: bool) -> None:
        """Render probe conversations of 1, 2, ... turns; each must be the one before, the reply, and the fixed text of a turn."""
        head = [{"role": "system", "content": "You advise an agent.\nBe short."}] if system else []
        for shift in range(len(_USER_PROBES)):
            users = [_USER_PROBES[(shift + 3 * turn) % len(_USER_PROBES)] for turn in range(_PROBE_TURNS)]
            replies = [_REPLY_PROBES[(shift + 2 * turn) % len(_REPLY_PROBES)] for turn in range(_PROBE_TURNS)]
            self._check_dialogue(head, users, replies)
        try:
            self._check_dialogue(head, list(_USER_PROBES[:3]), [_REASONING_PROBE] * 3)
        except UserError as error:
            raise _refusal("it removes the reasoning (<think>...</think>) of earlier replies") from error

    def _check_dialogue(self, head: list[dict[str, str]], users: list[str], replies: list[str]) -> None:
        before = None
        for turns in range(1, len(users) + 1):
            dialogue = head + _dialogue(users[:turns], replies[: turns - 1])
            text = self.tokenizer.render(dialogue, generation_prompt=True)
            if not text.endswith(self._ask_as_rendered):
                raise _refusal("it does not ask for a reply in the same way after every message")
            text = text[: len(text) - len(self._ask_as_rendered)]  # up to the last user's text; the ask itself is known
            if before is None:
                contents = [message["content"] for message in dialogue]
                pattern = ".*" + ".*".join(_loosely(content) for content in contents)
            else:
                pattern = re.escape(before + self._earlier) + _loosely(replies[turns - 2]) + re.escape(self._between) + _loosely(users[turns - 1])
            if not re.fullmatch(pattern, text, re.DOTALL):
                if before is not None and not text.startswith(before):
                    raise _refusal("a longer conversation does not begin with the shorter one (earlier messages are rewritten or dropped)")
                raise _refusal("it changes the text of messages, or writes turns differently as a conversation grows")
            before = text


# --- small pieces -----------------------------------------------------------------------------------------------------------------------------


def _refusal(reason: str) -> UserError:
    return UserError(
        f"the chat template lacks the prefix property: {reason}; give the tokenizer a chat template that only appends (`chat_template` in tokenizer_config.json)."
    )


def _marker(index: int) -> str:
    return f"zq{index}xwmarkwx{index}qz"


def _pieces(text: str, markers: int) -> list[str]:
    """The template's text around the markers 0 .. markers-1: markers + 1 pieces. Raises `UserError` if one is missing, doubled or out of order."""
    pieces = []
    for index in range(markers):
        if text.count(_marker(index)) != 1:
            raise _refusal("it drops, repeats or changes a message")
        piece, _, text = text.partition(_marker(index))
        pieces.append(piece)
    return pieces + [text]


def _dialogue(users: Sequence[str], replies: Sequence[str]) -> list[dict[str, str]]:
    messages = []
    for index, user in enumerate(users):
        messages.append({"role": "user", "content": user})
        if index < len(replies):
            messages.append({"role": "assistant", "content": replies[index]})
    return messages


def _system_into_user(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A system message becomes the beginning of the first user message, a blank line between them."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    rest = [dict(message) for message in messages if message["role"] != "system"]
    if system:
        rest[0]["content"] = "\n\n".join([*system, rest[0]["content"]])
    return rest


def _outer_white_space(text: str) -> tuple[str, str]:
    core = text.strip()
    if not core:
        return "", ""
    start = text.index(core)
    return text[:start], text[start + len(core) :]


def _loosely(content: str) -> str:
    """A pattern for a content whose outer white space a template may trim."""
    return r"\s*" + re.escape(content.strip()) + r"\s*"


def _encodable(text: str) -> str:
    """Text without lone surrogates (an environment's broken bytes), which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
