"""Every field a run can have, with the value it has unless a config says otherwise.

A config file starts from `get_defaults()` and changes what it is about. Any field can be changed on the command line:
`--config.learn.learning_rate=1e-5`. Units and meanings stand beside each field, once, here.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from epo_jax.api.settings import get_api_defaults


def get_defaults() -> ConfigDict:
    """The fields of a run. Lengths are in tokens, times in steps, rates are per optimizer step."""
    config = ConfigDict()
    config.name = "run"
    config.workdir = ""  # where the run writes; "" = runs/<name>
    config.seed = 0
    # Where compiled programs are kept for the next start: auto (.compilation_cache beside the run's folder, 2 GiB at most), a folder, or none
    config.compilation_cache = "auto"

    # Whose notices that the machine will be taken away make a run save and stop, as SIGTERM does: none | gce (Google Cloud's metadata server)
    config.preemption_notice = "none"

    config.learn_from = "rounds"  # rounds of self-play | recorded conversations (configs/offline.py) | stepagent: an expert (configs/stepagent.py)
    config.data = ""  # recorded, stepagent: a file in the published conversation format
    config.allow_malformed = "0.01"  # recorded: the share of rows that may be malformed (they are listed and skipped); True: any

    config.model = ConfigDict()
    # "mini" (shipped with the project), "gguf:PACKAGE_OR_FILE", "random" (from `architecture`), or a Hugging Face folder.
    config.model.source = "mini"
    config.model.compute_dtype = "float32"  # of activations and of the weights while playing; learning keeps float32 masters
    config.model.remat = "full"  # none | dots | full: what the backward pass computes again instead of keeping
    config.model.lora = ConfigDict()  # learns low-rank updates of frozen weights: gradient and optimizer hold those alone
    config.model.lora.rank = 0  # 0: off, all weights learn
    config.model.lora.alpha = 16.0  # the update is scaled by alpha / rank
    config.model.lora.targets = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
    config.model.architecture = ConfigDict()  # for source "random"
    config.model.architecture.vocab_size = 2048
    config.model.architecture.hidden_size = 256
    config.model.architecture.intermediate_size = 704
    config.model.architecture.num_layers = 4
    config.model.architecture.num_heads = 4
    config.model.architecture.num_kv_heads = 2
    config.model.architecture.head_dim = 64
    config.model.architecture.rope_theta = 10_000.0
    config.model.architecture.tokenizer_games = 400  # demonstrations of each environment, whose text the tokenizer is made from

    # Devices along each axis (epo_jax/mesh.py says what each splits); -1: the rest; 0: chosen for devices, rows and model (docs/scaling.md says how)
    config.mesh = ConfigDict()
    config.mesh.data = 0
    config.mesh.fsdp = 0
    config.mesh.sequence = 0
    config.mesh.tensor = 0

    config.distributed = ConfigDict()  # several processes, one run (epo_jax/hosts/joining.py)
    # auto: as the cluster says (Cloud TPU, SLURM, Open MPI, Kubernetes), alone where none does | none: alone | HOST:PORT of the first process
    config.distributed.coordinator = "auto"
    config.distributed.processes = 0  # with HOST:PORT: how many there are in all
    config.distributed.process = -1  # with HOST:PORT: which of them this is, from 0
    config.distributed.start_timeout_s = 900  # how long the processes wait for each other at the start; then exit code 75: try again

    config.environments = ConfigDict()
    config.environments.alfworld = get_environment(max_turns=20)
    config.environments.webshop = get_environment(max_turns=10)
    config.environments.webshop.options.pages = "brief"  # full: as the original's; brief: without what the conversation holds already
    config.environments.sotopia = get_environment(max_turns=10, share=0.0)
    config.environments.sotopia.max_words = 10

    config.self_play = ConfigDict()  # who sits at the other seat in SOTOPIA (epo_jax/rollout/opponents.py says who they are)
    config.self_play.opponents = ConfigDict()  # weights, relative to each other; 0: never met
    config.self_play.opponents.self = 0.0
    config.self_play.opponents.scripted = 1.0
    config.self_play.opponents.untrained = 0.0
    config.self_play.opponents.earlier = 0.0
    config.self_play.opponents.none = 0.0
    config.self_play.opponents.react = 0.0
    config.self_play.memory = 4  # rounds that "earlier" reaches back
    config.self_play.evaluate = "scripted"  # whom every evaluation meets: one of the above but "earlier"

    config.rollout = ConfigDict()
    config.rollout.episodes = 96  # a round
    config.rollout.group_size = 1  # times that each task of a round is played; the group estimators need 2 or more
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0  # 0: no limit
    config.rollout.top_p = 1.0
    config.rollout.max_strategy_tokens = 32
    config.rollout.max_context = 1024  # a whole episode; one that would grow longer ends there
    config.rollout.slots = 32  # episodes played at once
    config.rollout.decode_chunk = 16  # tokens decoded between two looks at the queue
    config.rollout.workers = 0  # processes that run the environments of one seat (epo_jax/rollout/workers.py); 0: this one does
    # What an episode samples does not depend, in a single bit, on what is played beside it: a run that was stopped goes on to the same weights.
    # False: smaller batches and shorter caches where they do (docs/running.md)
    config.rollout.exact = True
    config.rollout.weights = "compute"  # compute (model.compute_dtype) | bfloat16 | int8: while playing; learning keeps float32 masters

    config.actor = "literal"  # literal | openai | local | policy (no separate actor: what the policy says is the action; prompts act, act_brief)
    config.actor_api = get_api_defaults("gpt-4o-2024-08-06", temperature=0.7, max_tokens=128)  # actor openai
    config.local_actor = ConfigDict()  # actor local
    config.local_actor.source = ""  # as model.source; "" or "initial": the strategist's own weights, as they were before any training
    config.local_actor.prompt = "full"  # full: instruction and worked example; brief: the task alone
    config.local_actor.temperature = 0.7
    config.local_actor.max_action_tokens = 48
    config.local_actor.max_context = 4096  # a whole episode as the actor reads it; one that would grow longer ends there

    config.judge = "progress"  # progress | verifier | openai | graded
    config.judge_api = get_api_defaults("gpt-4o-2024-08-06", temperature=0.7, max_tokens=4096)  # judges openai and graded

    config.evaluator = "none"  # none | openai: who scores SOTOPIA's conversations where no rule does
    config.evaluator_api = get_api_defaults("gpt-4o-2024-08-06", temperature=0.0, max_tokens=4096)  # evaluator openai

    config.api = ConfigDict()  # what the models behind an API share
    config.api.cache = ""  # a file of replies; "": api_cache.sqlite in the run's folder; "none": none, everything is asked anew
    config.api.offline = False  # asks no server: what the cache does not hold fails

    config.credit = ConfigDict()
    # epo (as published) | reinforce | grpo, dr_grpo, rloo, gigpo (compare a task's episodes: rollout.group_size) | ppo (needs critic.trunk) |
    # bc (a round is the experts' demonstrations, cloned); a field below that an estimator does not have is not used
    config.credit.estimator = "reinforce"
    config.credit.discount = 0.99
    config.credit.process_weight = 1.0  # of the process reward beside the outcome; not in epo
    config.credit.outcome_weight = 1.0  # ppo: of the outcome beside the process reward
    config.credit.normalise = True  # reinforce, gigpo, ppo: divide by the standard deviation
    config.credit.baseline = "trajectory"  # reinforce: trajectory (the batch's mean) | turn | leave_one_out | none
    config.credit.gae = "turn"  # ppo: generalised advantage estimation over turns | over tokens (token)
    config.credit.gae_lambda = 0.95
    config.credit.anchor_weight = 1.0  # gigpo: of the comparison of turns spoken in one state
    config.credit.permute = False  # the control: advantages change places across episodes

    config.critic = ConfigDict()  # what ppo needs: a value head
    config.critic.trunk = "none"  # none | shared (reads the policy's last hidden state, changes nothing in it) | own (a copy, learned too)
    config.critic.learning_rate = 1e-3
    config.critic.epochs = 4  # passes over a round
    config.critic.clip = 0.2  # how far a value may move before its gain is not counted; 0: any

    config.learn = ConfigDict()
    config.learn.learning_rate = 1e-6
    config.learn.schedule = "cosine"  # cosine | constant
    config.learn.warmup_ratio = 0.03
    config.learn.epochs = 1  # passes over a round's trajectories
    config.learn.rows = 4  # trajectories in one forward pass, over all devices
    config.learn.accumulation = 4  # forward passes in one optimizer step
    config.learn.max_length = 1024  # longer trajectories drop whole turns at their end
    # Recorded conversations that are longer: drop whole turns at the end, or split. A split part begins again with the opening messages, and the
    # human message before its first turn is joined to the last of them; its turns weigh what they would in the whole conversation.
    config.learn.overlong = "drop"
    config.learn.length_buckets = (256, 384, 512, 640, 768, 1024)  # lengths of a forward pass, each compiled once
    # Several trajectories in a row instead of padding: the same steps, loss and gradient, less padding, a few more lengths to compile.
    # A packed pass has one row a device, of at most twice max_length and `rows` * max_length in all; `length_buckets` are not used.
    config.learn.packing = False
    config.learn.clip_norm = 1.0
    config.learn.weight_decay = 0.0
    config.learn.beta1 = 0.9
    config.learn.beta2 = 0.999
    # What a token's advantage is divided by: turn (turns of the episode times tokens of the turn, as published) | trajectory (tokens of the episode)
    # | token (tokens of the optimizer step); see epo_jax/batch.py
    config.learn.normalisation = "turn"
    config.learn.entropy_weight = 0.0
    # PPO's clip range: a token counts while learner / behaviour probability is in [1 - clip_low, 1 + clip_high]; 0: no bound on that side; both: as published
    config.learn.clip_low = 0.0
    config.learn.clip_high = 0.0
    # Instead of clipping: a token's gradient times min(learner / behaviour probability, importance_cap); 0: off
    config.learn.importance_cap = 0.0
    config.learn.kl_weight = 0.0  # of an estimate of KL(learner ‖ reference) in the loss
    config.learn.kl_kind = "k3"  # k1 | k2 | k3: which gradient each gives stands in epo_jax/learn/divergence.py
    config.learn.kl_reference = "behaviour"  # behaviour (what sampled) | start (the weights before the first round) | round (before this round)

    config.stepagent = ConfigDict()  # learn_from stepagent; `rounds` says how many cycles
    config.stepagent.reflection = "implicit"  # implicit (pairs) | inverse (a discriminator's reward, PPO)
    config.stepagent.experts = 48  # expert trajectories inspected in a cycle, other ones every time
    config.stepagent.beta = 0.1  # implicit: how far a pair may part before its gradient fades; 0 leaves clone_weight alone, a control
    config.stepagent.reference = "round"  # implicit: the policy at the start of the cycle (round) | of the first, the clone of the expert (start)
    config.stepagent.clone_weight = 0.0  # of the expert action's -log-probability besides, at the inspected states; not in the paper
    config.stepagent.reward = "expert"  # inverse: -log D (expert) | log(1 - D) - log D (log_odds); D is the share that the policy is thought to have
    config.stepagent.reflect_on = "inspection"  # inverse: PPO on the inspected actions (inspection) | on episodes of the policy's own (episodes)
    config.stepagent.discriminator = ConfigDict()
    config.stepagent.discriminator.learning_rate = 1e-4
    config.stepagent.discriminator.steps = 12  # optimizer steps a cycle, at most
    config.stepagent.discriminator.label_smoothing = 0.1
    config.stepagent.discriminator.max_accuracy = 0.9  # no steps in a cycle that begins with more

    config.warm_start = ConfigDict()  # cloning the experts' demonstrations before the first round
    config.warm_start.episodes = 0  # 0: off
    config.warm_start.learning_rate = 1e-3
    config.warm_start.rows = 4
    config.warm_start.accumulation = 4
    config.warm_start.packing = False  # as learn.packing, for the demonstrations
    config.warm_start.schedule = "cosine"
    config.warm_start.warmup_ratio = 0.05
    config.warm_start.beta2 = 0.95

    config.rounds = 3
    # 1: while a round is learned from, the next is played already, with the weights that this one began with. Worth it where an actor is slow.
    config.async_rounds = 0
    config.evaluate = ConfigDict()
    config.evaluate.every = 1  # rounds; the first evaluation comes before the first round
    config.evaluate.tasks = 100  # held-out tasks of each environment, if it has so many
    config.evaluate.temperature = 1.0

    config.compare = ConfigDict()  # python -m epo_jax.evaluate without --strategist
    config.compare.strategists = ()  # several modes in one table (none, react, vanilla, trained), each compared with the first; (): one, trained
    config.compare.checkpoint = ""  # whose weights are "trained", if --checkpoint does not say

    config.checkpoint = ConfigDict()
    config.checkpoint.keep = 2  # the newest ones
    # Besides, so many rounds whose evaluations had the best mean outcome over all environments; the best one's weights are what the run leaves.
    config.checkpoint.keep_best = 0
    config.checkpoint.keep_every = 0  # besides, for good, what every so many rounds begin with; 0: none
    config.checkpoint.every_steps = 0  # also in the middle of learning, every so many optimizer steps; 0: never
    config.checkpoint.background = True  # written while the run goes on; on a CPU that takes memory for one more copy of the state

    config.tensorboard = True
    config.wandb = ""  # a project of Weights & Biases that gets the same figures (pip install wandb); "": none
    return config


def get_environment(max_turns: int, share: float = 1.0) -> ConfigDict:
    """The fields of one environment's part in a run."""
    environment = ConfigDict()
    environment.share = share  # of the episodes, relative to the other environments' shares; 0: not played
    # auto: real data where its folder is named (ALFWORLD_DATA: train, valid_seen; WEBSHOP_DATA: train, test), else generated:train, generated:eval
    environment.train_split = "auto"
    environment.eval_split = "auto"
    # full: instruction and worked example; brief: the task alone. Where the policy acts itself: act (with a thought), act_brief (the action alone)
    environment.prompt = "brief"
    environment.max_turns = max_turns  # of the strategist, in each seat that it advises
    environment.max_words = 0  # of a strategy that the actor gets to read; what was sampled is learned from whole. 0: all
    environment.options = ConfigDict()  # of the environment's constructor
    return environment
