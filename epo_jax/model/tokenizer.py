"""Text to token ids and back: a thin layer over the tokenizers of transformers.

What it adds: text that comes from outside (an environment, an actor) can never become a special token, template text and outside text
that stand side by side are encoded as one run (so the ids equal those of transformers' own chat rendering), and a folder that only holds
a sentencepiece `tokenizer.model` is read with sentencepiece's own merge order.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tokenizers
from transformers import AutoTokenizer

from epo_jax.errors import UserError

TEMPLATE_DATE = "26 Jul 2024"  # Llama 3.x templates print a date; a fixed one keeps runs repeatable


class Segment(NamedTuple):
    """A piece of a conversation. Only `trusted` text (from the chat template) may hold special tokens."""

    text: str
    trusted: bool


class Tokenizer:
    """A transformers tokenizer, fast or sentencepiece, seen through what this project needs.

    `stop_ids`: ids that end a strategist's turn. `pad_id`: an id to fill rows with. `vocab_size`: number of ids, added tokens included (a model's
    table may be larger). `fingerprint`: 16 hex digits over vocabulary, merges, added tokens and chat template.
    """

    def __init__(self, backend: Any, *, more_stop_ids: Iterable[int] = ()):
        """Wrap a loaded transformers tokenizer; `more_stop_ids` are end tokens that only the model's generation config knows."""
        self.backend = backend
        self.vocab_size = len(backend)
        self._added = sorted(backend.added_tokens_decoder.items(), key=lambda item: (-len(item[1].content), item[0]))  # (id, token), longest first
        self._added_pattern = re.compile("|".join(f"({_pattern_of(token)})" for _, token in self._added)) if self._added else None
        self._never_from_text = frozenset(index for index, _ in self._added) - {backend.unk_token_id}
        self._plain = _plain_tokenizers(getattr(backend, "backend_tokenizer", None))
        stops = {int(index) for index in more_stop_ids}
        if backend.eos_token_id is not None:
            stops.add(int(backend.eos_token_id))
        if self.chat_template:
            stops |= {index for index in (self._end_of_turn_id(),) if index is not None}
        self.stop_ids = frozenset(index for index in stops if index < self.vocab_size)
        if not self.stop_ids:
            raise UserError("the tokenizer has no end token: give one as `eos_token` in tokenizer_config.json.")
        pad = backend.pad_token_id
        self.pad_id = int(pad) if pad is not None else min(self.stop_ids)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a Hugging Face folder (fast or sentencepiece) or a GGUF file. Raises `UserError` where there is none."""
        path = pathlib.Path(path)
        if path.is_file() and path.suffix == ".gguf":
            from epo_jax.model import gguf_weights  # only where it is needed: it reads the whole metadata

            return cls(gguf_weights.tokenizer(path))
        files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
        if not any((path / name).is_file() for name in files):
            raise UserError(f"no tokenizer at {path}: give a folder that holds tokenizer.json or tokenizer.model, or a .gguf file.")
        try:
            backend = AutoTokenizer.from_pretrained(str(path), local_files_only=True, mistral_format=False)
        except Exception as error:  # transformers raises many kinds for one damaged file
            raise UserError(f"the tokenizer in {path} cannot be read ({_first_line(error)}): copy its files again.") from error
        if (path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file():
            _use_sentencepiece_merges(backend, path / "tokenizer.model")
        return cls(backend, more_stop_ids=_end_ids_of_model(path))

    @property
    def chat_template(self) -> str:
        """The Jinja chat template ("" where there is none)."""
        template = self.backend.chat_template
        if isinstance(template, dict):
            template = template.get("default", "")
        return template or ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits: equal for tokenizers that make the same ids of the same conversation."""
        backend = getattr(self.backend, "backend_tokenizer", None)
        digest = hashlib.sha256()
        if backend is not None:
            model = json.loads(backend.to_str())["model"]
            digest.update(json.dumps([model.get("vocab"), model.get("merges")], sort_keys=True).encode())
        else:
            digest.update(json.dumps(self.backend.get_vocab(), sort_keys=True).encode())
        added = sorted((index, token.content, token.special) for index, token in self._added)
        digest.update(json.dumps([added, self.chat_template]).encode())
        return digest.hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text as it stands in the middle of a conversation; never a special token, whatever the text says."""
        return self._encode_run(text, first=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        sentencepiece = getattr(self.backend, "sp_model", None)
        if sentencepiece is None:
            return self.backend.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # transformers' sentencepiece backend spells bytes out ("<0x0A>"); sentencepiece itself knows better
        skipped = set(self.backend.all_special_ids)
        return sentencepiece.decode([int(index) for index in ids if index not in skipped and index < sentencepiece.get_piece_size()])

    def encode_segments(self, segments: Iterable[Segment], *, first: bool) -> list[int]:
        """Ids of template and outside text in order; `first` says that nothing stands before them.

        Special tokens are recognised in trusted text only. Plain text between two of them is encoded as one run, as transformers does, so a word
        that begins in the template and ends in the content gets the same ids here and there.
        """
        ids: list[int] = []
        run = ""
        for piece in self._split(segments):
            if isinstance(piece, int):
                ids += self._encode_run(run, first=first and not ids)
                ids.append(piece)
                run = ""
            else:
                run += piece
        return ids + self._encode_run(run, first=first and not ids)

    def render(self, messages: Sequence[dict[str, str]], *, generation_prompt: bool) -> str:
        """The chat template's text. Raises `UserError` with the template's own complaint."""
        if not self.chat_template:
            raise UserError("the tokenizer has no chat template: add `chat_template` to tokenizer_config.json or a file chat_template.jinja.")
        try:
            return self.backend.apply_chat_template(
                list(messages), chat_template=self.chat_template, tokenize=False, add_generation_prompt=generation_prompt, date_string=TEMPLATE_DATE
            )
        except Exception as error:  # Jinja errors, and raise_exception() called by the template
            raise UserError(f"the chat template cannot render this conversation ({_first_line(error)}): use another model's template.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer's files (chat template included) so that `AutoTokenizer.from_pretrained` loads them."""
        try:
            self.backend.save_pretrained(str(folder))
        except OSError as error:
            raise UserError(f"cannot write the tokenizer to {folder}: {error.strerror or error}; make room or choose another folder.") from error

    def first_added_token(self, text: str) -> tuple[int, int, int] | None:
        """(start, end, id) of the first added token in trusted text, or None."""
        match = self._added_pattern.search(text) if self._added_pattern else None
        return None if match is None else (match.start(), match.end(), self._added[match.lastindex - 1][0])

    def _end_of_turn_id(self) -> int | None:
        """The added token that the template writes right after a reply, if it does."""
        reply = "zqreplyqz"
        try:
            text = self.render([{"role": "user", "content": "zquserqz"}, {"role": "assistant", "content": reply}], generation_prompt=False)
        except UserError:
            return None  # told, with its reason, by whoever renders a real conversation
        found = self.first_added_token(text.rpartition(reply)[2])
        return found[2] if found else None

    def _split(self, segments: Iterable[Segment]) -> Iterable[str | int]:
        for text, trusted in segments:
            while trusted and text and (found := self.first_added_token(text)):
                yield text[: found[0]]
                yield found[2]
                text = text[found[1] :]
            yield text

    def _encode_run(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        ids = self._encode_plain(text, first=first)
        if self._never_from_text.isdisjoint(ids):
            return ids
        # A word-level vocabulary may hold a special token as an ordinary word. Broken into characters, it cannot be met whole.
        ids = []
        for index, character in enumerate(text):
            ids += self._encode_plain(character, first=first and index == 0)
        return [index for index in ids if index not in self._never_from_text]

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        if self._plain is None:
            return self.backend.encode(text, add_special_tokens=False, split_special_tokens=True)
        return self._plain[0 if first else 1].encode(text, add_special_tokens=False).ids


def _plain_tokenizers(backend: tokenizers.Tokenizer | None) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer] | None:
    """Copies of a fast tokenizer that know no added token: for a run that opens the input, and for one that follows a special token.

    The two differ where the space mark is put before the first run only (`prepend_scheme` "first").
    """
    if backend is None:
        return None
    record = json.loads(backend.to_str())
    record.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    opening = tokenizers.Tokenizer.from_str(json.dumps(record))
    if not _never_prepend(record.get("pre_tokenizer")):
        return opening, opening
    return opening, tokenizers.Tokenizer.from_str(json.dumps(record))


def _never_prepend(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Turn every `prepend_scheme` "first" into "never"; True if there was one."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any([_never_prepend(part) for part in pre_tokenizer["pretokenizers"]])
    if pre_tokenizer.get("prepend_scheme") != "first":
        return False
    pre_tokenizer["prepend_scheme"] = "never"
    return True


def _pattern_of(token: tokenizers.AddedToken) -> str:
    """Matches an added token; one that eats white space beside it does so here too."""
    return (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")


def _end_ids_of_model(folder: pathlib.Path) -> set[int]:
    """End-of-sequence ids in generation_config.json and config.json; instruction models often list several."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue  # absent or damaged: the weights' loader tells about config.json
        for index in value if isinstance(value, list) else [value]:
            if isinstance(index, int):
                found.add(index)
    return found


def _use_sentencepiece_merges(backend: Any, model_file: pathlib.Path) -> None:
    """Give a fast tokenizer made from `tokenizer.model` the merge order of sentencepiece: by the score of the merged piece.

    transformers orders merges by id, which differs where scores and ids disagree: on the pieces of several spaces in Llama's and Mistral's
    vocabularies, so that "a  b" would get other ids than the model was trained on. Unigram models are left as they are.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file.read_bytes())
    fast = getattr(backend, "backend_tokenizer", None)
    if fast is None or proto.trainer_spec.model_type != proto.trainer_spec.BPE or not isinstance(fast.model, tokenizers.models.BPE):
        return
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    merges = []
    for piece in proto.pieces:
        if piece.type not in (kinds.NORMAL, kinds.USER_DEFINED):
            continue
        for cut in range(1, len(piece.piece)):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in ids and right in ids:
                merges.append((-piece.score, ids[left], ids[right], left, right))
    merges.sort()
    fast.model = tokenizers.models.BPE(
        vocab=ids, merges=[(left, right) for *_, left, right in merges], unk_token=backend.unk_token, fuse_unk=True, byte_fallback=True
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
