r"""Every configuration key, its unit and its default; returned locked.

An experiment is a small file beside this one that changes a few keys. A key
that is not declared here does not exist, so a typo is an error. Values are
numbers, strings and tuples: a config imports neither jax nor lm. The letters of
`model` are the array suffixes of `lm` (dimension key in
`lm/model/transformer.py`).

    python -m lm.main --config=ml_collections_configs/tiny.py --workdir=RUN \
        --config.optim.learning_rate=1e-3
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A 4.2M-parameter decoder on the default corpus; see the comments."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # Of the initialisation and of the data order.
  c.model = _model()
  c.data = _data()
  c.optim = _optim()
  c.gauss_newton = _gauss_newton()
  c.schedule = _schedule()
  c.train = _train()
  c.mesh = _mesh()
  c.quant = _quant()
  c.product = _product()
  c.eval = _eval()
  c.checkpoint = _checkpoint()
  c.log = _log()
  c.lock()
  for free in (
    c.optim.kwargs,  # Another optimiser takes other names,
    c.model.mixer_kwargs,  # as does another entry.
    c.model.ffn_kwargs,
    c.model.product_kwargs,
    c.train.objective_kwargs,
    c.train.weights_kwargs,
    c.log.probes,
  ):
    free.unlock()
  return c


def _model() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.D = 256  # Width.
  c.N = 4  # Layers.
  c.H = 4  # Query heads; each has D / H channels.
  c.G = 4  # Key-value heads; divides H (G < H is grouped-query attention).
  c.F = 1024  # Inner width of the feed-forward block.
  c.V = 0  # Vocabulary; 0 takes the tokenizer's. Padded up to 128s.
  c.norm = "layernorm"  # layernorm | rmsnorm
  c.norm_eps = 1e-5
  c.norm_bias = False  # A bias beside the gain (layernorm only).
  c.norm_position = "pre"  # pre: x + f(n(x)) | after: x + n(f(x))
  # rope_half | rope_interleaved | alibi | learned | none
  c.positions = "rope_half"
  c.rope_base = 10_000.0
  c.qk_norm = "none"  # none | full (over D, before the split) | head
  c.qk_norm_type = "layernorm"  # layernorm | rmsnorm
  c.qk_norm_bias = False
  # Entries of the tables in `lm/model/seams.py`, and each entry's own keys.
  c.mixer = "softmax"
  c.mixer_kwargs = ml_collections.ConfigDict(allow_dotted_keys=False)
  c.ffn = "dense"
  c.ffn_kwargs = ml_collections.ConfigDict(allow_dotted_keys=False)
  c.product = "plain"
  c.product_kwargs = ml_collections.ConfigDict(allow_dotted_keys=False)
  c.mlp = "gelu"  # Nonlinearity of "dense": gelu | swiglu | relu2
  c.tied = True  # The head is the transposed embedding.
  c.attention_soft_cap = 0.0  # c tanh(s / c) on attention scores; 0: off.
  c.logit_soft_cap = 0.0  # The same on the output logits; 0: off.
  c.isolate_documents = True  # No attention across document boundaries.
  c.restart_positions = True  # Position 0 at each document's first token.
  c.attention = "xla"  # xla | cudnn (GPU) | splash (TPU)
  c.init = "mitchell"  # mitchell | fan_in | megatron
  c.init_std = 0.02  # Of the megatron scheme.
  c.init_cut = 3.0  # Truncation, in standard deviations; 0: not truncated.
  c.embed_init_std = 0.0  # 0: what the scheme says.
  c.layers = "auto"  # scan | unroll | auto (scan on accelerators or N >= 12)
  c.remat = "none"  # none | full | dots | names:NAME,NAME
  c.compute_dtype = "auto"  # float32 | bfloat16 | auto (bfloat16 if not a CPU)
  c.z_loss = 0.0  # Coefficient of mean(logsumexp(logits) ** 2).
  c.loss_chunk = 0  # Tokens per chunk of head and loss; 0: all at once.
  return c


def _data() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.root = "data"  # Folder of the prepared directories.
  # (corpus, weight) pairs; weights are shares of the token stream. A corpus is
  # sotu | stdlib | wiki | awsdocs | legal | gcide | dir:PATH | tfds:PATH | c4.
  c.mixture = (("sotu", 1.0),)
  c.tokenizer = "bpe"  # bpe (trained here) | bytes | sp:FILE
  c.vocab_size = 4096  # Pieces of a trained tokenizer.
  c.seq_length = 256  # Targets per row; a row holds one token more.
  c.batch_size = 4  # Rows per update, over all devices and processes.
  # ((tokens, rows), ...): rows from that many tokens on, the first from 0, all
  # multiples of train.microbatch_size. (): batch_size, always.
  c.batch_schedule = ()
  c.limit_rows = 0  # Train on the first so many rows of each corpus; 0: all.
  # Train on chosen rows: FILE.npz with row numbers for each corpus; "": all.
  c.select = ""
  c.prefetch = 4  # Batches made ahead by a thread; 0: none.
  return c


def _optim() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # A factory of `optim`, `optax` or `optax.contrib`, searched in this order;
  # "optax.contrib.muon" is optax's where `optim` has one of the name as well.
  c.name = "adamw"
  c.learning_rate = 1e-3  # Peak.
  # Passed to the factory unchanged, after its signature accepted the names.
  c.kwargs = ml_collections.ConfigDict(
    dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1), allow_dotted_keys=False
  )
  # Other optimisers for some roles (input, hidden, output, gain, bias), e.g.
  # {"hidden": {"name": "muon", "learning_rate": 0.02, "kwargs": {}}}; a name,
  # rate or kwargs that is left out is that above.
  c.by_role = ml_collections.ConfigDict({}, allow_dotted_keys=False)
  c.decay = "matrices"  # What weight_decay touches: matrices | all
  # What soap and shampoo make of embedding and head: elementwise (Adam) |
  # one_sided (a factor on the side of the width).
  c.embeddings = "elementwise"
  c.clip_norm = 1.0  # Of the global gradient norm; 0: off.
  # Averages of the weights, each evaluated too: "ema:0.99" (a decay), "age:25"
  # (a half-life of 1/25 of the run so far), "tail:0.5" (the last half).
  c.averages = ()
  return c


def _gauss_newton() -> ml_collections.ConfigDict:
  """For `optim.name` "gauss_newton" and "gauss_newton_microsteps"."""
  c = ml_collections.ConfigDict()
  c.optimizer = "muon"  # Makes the inner updates, with `optim.kwargs`.
  c.inner_steps = 16  # N, microbatches that are solved on.
  c.search_batches = 0  # M, further ones for the line search; 0: N / 4.
  c.mode = "quadratic"  # quadratic | prox_linear | nonlinear (the control)
  c.scope = "full"  # full | layerwise (each block, embedding and head alone)
  # constant | global_cosine | constant_with_inner_cosine |
  # cosine_with_global_schedule; the peak is `optim.learning_rate`.
  c.inner_schedule = "constant_with_inner_cosine"
  c.inner_warmup = 0.0  # Inner steps; up to 1 a fraction of N.
  c.line_search = "grid"  # grid | quadratic | none
  c.num_alphas = 0  # Candidates; 0: 5, or what a layerwise scope needs.
  c.include_zero = False  # May the grid reject the displacement?
  c.damping = 0.0  # Of the local model; adapted, its first value.
  c.adapt_damping = False  # Levenberg-Marquardt.
  c.warm_start = 1.0  # Share of the displacement kept; 1: of what is left.
  c.reset_inner_state = False  # Of the inner optimiser, each outer step.
  c.steps_per_batch = 1  # Inner updates on a microbatch.
  c.cg_iters = 0  # Conjugate gradients on all N at once instead; 0: off.
  return c


def _schedule() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # cosine | wsd | constant | linear | inverse_sqrt | seesaw (a growing batch in
  # place of the cosine's decay; `lm/config/ramp.py`)
  c.name = "cosine"
  c.unit = "fraction"  # Of the run | steps | tokens: unit of the three below.
  c.warmup = 0.1
  c.decay = 0.1  # wsd: length of the final decay.
  c.offset = 0.0  # inverse_sqrt: A of sqrt(A / (t - warmup + A)); 0: warmup.
  # May a run be resumed with another length, if its rates follow from that?
  c.allow_new_length = False
  c.start_factor = 0.0  # Of the peak, at step 0.
  c.end_factor = 0.1  # Of the peak, at the end.
  c.alpha = 1.1  # seesaw: growth of the batch at a milestone.
  c.max_batch_size = 0  # seesaw: rows; 0: no bound.
  return c


def _train() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.num_steps = 0  # Length of the run in updates ...
  c.num_tokens = 1_300_000  # ... or in tokens: exactly one of them is > 0.
  c.microbatch_size = 0  # Rows per pass; 0: the whole batch at once.
  c.stop_at_loss = 0.0  # Stop once the first eval set is below it; 0: never.
  c.stop_at_average = ""  # Of `optim.averages`: whose loss; "": the weights'.
  c.init_from = ""  # Checkpoint or export to take the weights from.
  # RUN[:STEP]: go on from another run's checkpoint, its weights, optimiser,
  # clock and stream, with another batch, length, rate or schedule.
  c.branch_from = ""
  c.objective = "next_token"  # A name of lm/objectives/table.py.
  c.objective_kwargs = ml_collections.ConfigDict()  # Its own keys.
  # What the model sees of what is trained: a name of lm/weights/table.py.
  # quant.method qat and rat choose "rounded".
  c.weights = "identity"
  c.weights_kwargs = ml_collections.ConfigDict()
  return c


def _mesh() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.data = -1  # Devices along each axis; one may be -1, "the rest".
  c.fsdp = 1
  c.tensor = 1
  c.rules = "logical"  # logical | fsdp_shape (by shape alone)
  return c


def _quant() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # none | ptq (rounded at evaluations only) | qat (loss of weights rounded to
  # nearest) | rat (at random) | lotion (a penalty): `lm/weights/rounded.py`.
  c.method = "none"
  # int4 | int8 | mxint8 | fp4 | fp6_e2m3 | fp6_e3m2 | fp8_e4m3 | fp8_e5m2
  c.grid = "int4"
  c.scale = "absmax"  # absmax | pow2_floor | pow2_ceil | nvfp4
  c.block_size = 0  # Entries that share a scale; 0: a whole matrix.
  c.paths = "blocks/.*"  # Regular expression: which matrices are rounded.
  c.scale_gradient = True  # Do gradients of qat, rat, lotion see the scales?
  c.strength = 0.0  # lotion: weight of the penalty.
  c.warmup = 0.1  # lotion: fraction of the run in which it grows to that.
  # lotion: squared gradients | drawn labels | soap's or shampoo's factors.
  c.curvature = "empirical"  # empirical | sampled | factors
  c.curvature_decay = 0.99  # Of the average of empirical or sampled.
  c.fisher_rows = 1  # sampled: rows of each update that labels are drawn for.
  c.draws = 8  # Roundings at random that the last evaluation averages.
  return c


def _product() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  # Operands of products in few bits: a name of `optim.PRODUCT_RECIPES`, e.g.
  # mxfp8_e4m3 | mxfp6 | mxfp4_random | nvfp4 | weights_only | forward_only.
  c.recipe = "none"
  # Of single products: (("head", "mxfp8_e4m3"), ("ffn.out", (("g_dw",
  # "fp8_e5m2"),)), ...), see `lm/model/product_slots.py`.
  c.overrides = ()
  c.high_layers = 0  # So many first and last layers stay as they are.
  c.switch_at = ()  # ((updates made, recipe), ...): another one from there on.
  return c


def _eval() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.sets = ("sotu",)  # Corpora whose validation split is scored.
  c.every = 250  # Steps between points of the curve `loss`; 0: no curve.
  c.batch_size = 16  # Rows.
  c.batches = 8  # At most, per set and point of the curve; 0: the whole split.
  c.final_batches = 0  # The same for `final_loss`, at the end of the run.
  return c


def _checkpoint() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.every = 500  # Steps; 0: only at the end.
  c.keep = 2  # Newest checkpoints kept.
  c.keep_period = 0  # Also keep each step divisible by it; 0: none.
  c.keep_best = False  # Also keep the one with the lowest eval loss.
  c.async_save = True
  return c


def _log() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.every = 10  # Steps between lines of metrics.jsonl.
  # Names of lm/probes/table.py with their own keys, e.g.
  # {"noise_scale": {"every": 100}}. Each set of probes that is due together
  # compiles the step once more.
  c.probes = ml_collections.ConfigDict()
  c.details_every = 0  # Short for leaf_statistics with that `every`; 0: none.
  c.progress = "auto"  # auto (bar on a terminal) | bar | plain | none
  c.tensorboard = False
  c.wandb = False
  c.profile_start = 0  # First profiled step; with profile_steps > 0.
  c.profile_steps = 0
  c.samples = 3  # Texts sampled at the end of the run.
  c.sample_tokens = 120  # Tokens of each.
  return c
