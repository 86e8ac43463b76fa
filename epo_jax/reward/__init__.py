from epo_jax.reward import actor_critic, credit, group_credit  # noqa: F401  (who imports any of them finds the estimators of all)
