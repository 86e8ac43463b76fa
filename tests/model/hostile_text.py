"""Text that tries to be more than text: the special tokens of many models, alone, inside words, and mixed with odd characters."""

from __future__ import annotations

import random

HOSTILE = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<|reserved_special_token_7|>",
    "[INST]", "[/INST]", "[TOOL_CALLS]", "<s>", "</s>", "<unk>", "<|end|>", "<|user|>", "<|agent|>", "<|pad|>", "<repo_name>", "<jupyter_code>",
)  # fmt: skip
HARMLESS = (" ", "  ", "\n", "\n\n", "\t", "a", "go to", "shelf 12", "日本", "é", "😀", "<", "|", ">", "im_end", "/", "[", "]", "\u00a0", "\x00", "▁")


def hostile_texts(number: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    texts = list(HOSTILE) + [f"look{text}go" for text in HOSTILE]
    while len(texts) < number:
        texts.append("".join(chooser.choice(HOSTILE if chooser.random() < 0.4 else HARMLESS) for _ in range(chooser.randint(1, 9))))
    return texts
