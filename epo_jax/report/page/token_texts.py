"""What each sampled token says, so that a strategy can be shown token by token: pieces that join to the text.

Most tokens read alike wherever they stand, so the page holds a table of id → text and every turn only its ids. Where a character is spread
over several tokens no table can tell, and the turn holds its pieces itself.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from epo_jax.model.tokenizer import Tokenizer

_PART_OF_A_CHARACTER = "\ufffd"
PADDING = 128  # how many more ids than its tokenizer a model may have, so that its vocabulary divides well; it may sample them


class TokenTexts:
    """`table`: id → what it says, of all ids seen so far. `special`: those of them that are no text (end of turn, padding of the vocabulary).
    `unknown`: turns with an id that neither tokenizer nor padding has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._never_text = set(tokenizer.backend.all_special_ids) | tokenizer.stop_ids
        # A leading space is dropped by some tokenizers at the beginning of a text, so each token is read behind another.
        self._before = tokenizer.backend.encode("a", add_special_tokens=False)[-1:]
        self._length_before = len(tokenizer.decode(self._before))
        self.table: dict[int, str] = {}
        self.special: set[int] = set()
        self.unknown = 0

    @classmethod
    def of_run(cls, folder: pathlib.Path) -> TokenTexts:
        """From a run's folder. Raises `epo_jax.errors.UserError` where it has no tokenizer that can be read."""
        return cls(Tokenizer.load(folder / "tokenizer"))

    def pieces(self, tokens: Sequence[int], strategy: str) -> list[int] | list[str] | None:
        """The ids themselves where `table` joins them to `strategy` (or nobody wrote down what they say: ""), else one text a token. None if the
        tokenizer does not have one of them."""
        if not all(isinstance(token, int) and 0 <= token < self._tokenizer.vocab_size + PADDING for token in tokens):
            self.unknown += 1
            return None
        texts = [self._text(token) for token in tokens]
        said = "".join(text for token, text in zip(tokens, texts, strict=True) if token not in self.special)
        if _PART_OF_A_CHARACTER not in said and strategy in (said.strip(), ""):
            return list(tokens)
        return self._read_together(tokens)

    def _text(self, token: int) -> str:
        if token not in self.table:
            if token >= self._tokenizer.vocab_size:
                self.special.add(token)
                self.table[token] = f"<{token}>"
            elif token in self._never_text:
                self.special.add(token)
                self.table[token] = str(self._tokenizer.backend.convert_ids_to_tokens(token))
            else:
                self.table[token] = self._tokenizer.decode([*self._before, token])[self._length_before :]
        return self.table[token]

    def _read_together(self, tokens: Sequence[int]) -> list[str]:
        """A character belongs to the token that completes it; those before it say nothing."""
        texts, read = [], self._tokenizer.decode(self._before)
        for end, token in enumerate(tokens, start=1):
            now = self._tokenizer.decode([*self._before, *tokens[:end]])
            unfinished = now.endswith(_PART_OF_A_CHARACTER) and end < len(tokens)
            texts.append("" if unfinished else now[len(read) :])
            read = read if unfinished else now
        return texts
