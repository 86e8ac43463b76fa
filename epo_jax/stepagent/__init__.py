"""StepAgent (Deng et al. 2024, arXiv:2411.03817): an agent learns step by step from an expert, by inspecting and reflecting in turns.

    inspection.py  what the policy would have done at each of the expert's states
    branches.py    rows that read a trajectory once for all that is said in it
    implicit.py    reflection by pairs: the expert's action is to gain on the policy's own
    inverse.py     reflection by a reward that a discriminator gives, with PPO
    run.py         the cycles of the main command: `--config=configs/stepagent.py:implicit` or `:inverse`
"""
