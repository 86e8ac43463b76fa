"""epo_jax: a small language model learns to be a strategist for other agents."""

__version__ = "0.1.0"
