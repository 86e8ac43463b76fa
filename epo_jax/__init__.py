"""A small language model learns to be a strategist for other LLM agents."""

import os

# transformers, imported for its tokenizers, would begin every command with the advice to install torch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
