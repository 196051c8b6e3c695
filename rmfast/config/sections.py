"""Every key of a config: typed fields with their defaults, and which of them clash."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rmfast.data.clock import DEFAULT_DATE, iso_date
from rmfast.data.columns import read_columns
from rmfast.data.denoise import Denoise, resolve

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(lambda v: (v,) if isinstance(v, int | float | str) else v)]


def _suites(value: Any) -> Any:
    """[LABEL:]SUITE=PATH, one or several."""
    values = (value,) if isinstance(value, str) else value
    for one in values if isinstance(values, list | tuple) else ():
        if not all(str(one).partition("=")):
            raise ValueError(f"is SUITE=PATH, as in rmb=RMB_dataset, got {one!r}")
    return values


Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: read_columns(value).words)]


Suites = Annotated[tuple[str, ...], BeforeValidator(_suites)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _spelling(value: Any) -> Any:
    """Other spellings of a choice."""
    return {"bf16": "bfloat16", "fp32": "float32", "inverse-sqrt": "inverse_sqrt"}.get(str(value), value)


Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_spelling)]


def _slice(value: Any) -> Any:
    """Quantiles or the name of some edges."""
    if value not in ("negative", "all", None) and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError(f"is negative, all or two quantiles, got {value!r}")
    return value


EdgeSlice = Annotated[Literal["negative", "all"] | tuple[float, float] | None, BeforeValidator(_slice)]
Preset = Annotated[
    Literal["baseline", "margin", "flip", "flip_margin", "soft_margin"],
    BeforeValidator(lambda v: "baseline" if v == "none" else v),
]
ScheduleName = Annotated[Literal["linear", "cosine", "inverse_sqrt", "constant"], BeforeValidator(_spelling)]


class Section(BaseModel):
    """A frozen group of keys; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1; YAML takes a bare yes or on for true.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"is not true or false, got {value}")
        return value


class RunConfig(Section):
    dir: str = Field("runs/reward", min_length=1, description="folder of the run: metrics, checkpoints, model, report")
    seed: int = Field(0, ge=0, lt=2**31, description="of data order, new heads and dropout")
    epochs: float = Field(1.0, gt=0, le=1e6, description="passes over the training data, where max_steps is not given")
    max_steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps; null for `epochs` passes")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: from the newest checkpoint in dir; never: rename dir"
    )
    log_every: int = Field(1, ge=1, description="steps between console lines; metrics.jsonl has every step")
    tensorboard: bool = Field(True, description="write TensorBoard events to dir/tensorboard")
    wandb: bool = Field(False, description="log to wandb in offline mode (package wandb)")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of each process; null for torch's choice")


class ModelConfig(Section):
    path: str = Field(..., min_length=1, description="Hugging Face folder or .gguf file: base, chat or reward model")
    dtype: Dtype = Field("float32", description="of activations; weights are fp32 masters")
    from_scratch: bool = Field(False, description="take config and tokenizer from `path` and draw random weights")
    heads: int | None = Field(None, ge=1, le=1024, description="reward heads; null: as in `path`, or 1")
    top_layers: int | None = Field(None, ge=0, description="train only the top k layers, norm and head; 0: head only")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="on residual branches, in training; null: 0, with a contrastive term 0.05"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again, for memory"
    )
    kernels: Literal["auto", "triton", "reference"] = Field(
        "auto", description="auto: Triton on CUDA, plain torch (reference) elsewhere"
    )
    attention: Literal["auto", "kernel", "flash"] = Field(
        "auto", description="kernel: as model.kernels; flash: torch's flash attention; auto: CUDA tries both once"
    )


class DataConfig(Section):
    train: Paths = Field(..., min_length=1, description="files, folders or datasets names (NAME[:CONFIG][#SPLIT])")
    eval: Paths = Field((), description="held-out data, in the same forms")
    train_weights: Numbers | None = Field(None, description="passes over each training source in an epoch; null: 1")
    max_length: int = Field(1024, ge=2, lt=2**31, description="tokens of prompt + response")
    over_long: Literal["drop", "truncate", "error"] = Field("drop", description="truncate: left of the prompt")
    bad_rows: Literal["drop", "error"] = Field("drop", description="rows that cannot be used: counted, or fatal")
    pairs_per_step: int = Field(8, ge=1, description="global batch in prompt groups (a pair or a ranked list is one)")
    tokens_per_pack: int = Field(16384, ge=2, lt=2**31, description="token budget of one forward pass")
    shuffle: bool = Field(True, description="new order each epoch; false: as in the files")
    columns: Columns = Field(
        (),
        description="what other columns are: THEIRS=OURS, a layout (orca, alpaca, ...), ignore (docs/data.md)",
    )
    chat_template: str | None = Field(None, description="jinja file or text, in place of the tokenizer's template")
    template_date: Annotated[str, BeforeValidator(iso_date)] = Field(
        DEFAULT_DATE, description="YYYY-MM-DD, given to a chat template that reads the clock"
    )
    cache: str = Field("~/.cache/rmfast", min_length=1, description="where tokenised data is kept")
    workers: int | None = Field(None, ge=1, description="tokenising processes; null for the number of cores")
    denoise: Preset | None = Field(None, description="what is done to training edges by their strength (denoise.*)")

    @model_validator(mode="after")
    def _max_length_fits(self) -> "DataConfig":
        # The default gives way to a smaller pack; a number that was asked for is checked against it in Config.
        if "max_length" in self.model_fields_set or self.tokens_per_pack >= self.max_length:
            return self
        return self.with_default_length(self.tokens_per_pack)

    def with_default_length(self, tokens: int) -> "DataConfig":
        """The same with that `max_length`, as if nobody had asked for one."""
        out = self.model_copy(update={"max_length": tokens})
        out.model_fields_set.discard("max_length")
        return out


class DenoiseConfig(Section):
    """Options of `rmfast.data.denoise.Denoise`; null takes the preset's (data.denoise)."""

    flip: float | None = Field(None, description="share of edges, weakest first, that swap sides where strength < 0")
    drop: tuple[float, float] | None = Field(None, description="quantiles of strength to leave out: LOW HIGH")
    drop_below: float | None = Field(None, description="strength (after the flip) below which edges are left out")
    margin: Literal["none", "mean"] | None = Field(None, description="mean: margin = clip(scale * strength, min, max)")
    margin_scale: float | None = Field(None, description="factor of the margin")
    margin_min: float | None = Field(None, description="smallest margin; 0 clamps negative ones")
    margin_max: float | None = Field(None, description="largest margin")
    smooth: float | None = Field(None, description="alpha of label smoothing, up to 0.5; 0 for none")
    smooth_slice: EdgeSlice = Field(
        None, description="edges with new targets: negative (strength < 0), all, or quantiles LOW HIGH"
    )
    soft_temperature: float | None = Field(None, description="T of targets sigmoid(strength / T), in place of smooth")
    weight_temperature: float | None = Field(None, description="T of a factor sigmoid(strength / T) on the weight")


class OptimConfig(Section):
    lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    schedule: ScheduleName = Field("linear", description="after the warm-up")
    warmup: float = Field(0.0, ge=0, description="steps; below 1: share of all steps")
    floor: float = Field(0.0, ge=0, le=1, description="share of lr at which linear and cosine end")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of AdamW")
    eps: float = Field(1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, on matrices")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 for none")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="a NaN or Inf loss or gradient: stop, or skip it")


class ObjectiveConfig(Section):
    center: float = Field(0.0, ge=0, description="coefficient of (s_better + s_worse)^2; TRL suggests 0.01")
    lm: float = Field(0.0, ge=0, description="weight of the LM loss on the chosen responses")
    contrastive: Literal["none", "simcse", "swav"] = Field("none", description="term between two dropout views")
    on: Literal["pair", "difference"] = Field("pair", description="its items: responses, or better - worse and back")
    beta: float | None = Field(None, ge=0, description="its weight; null: simcse 1, swav 0.1 (pair), 0.5 (difference)")
    views: Literal["pass", "response"] = Field(
        "pass", description="second view: prompt and responses again, or the responses alone (cheaper)"
    )
    temperature: float | None = Field(None, gt=0, description="of its softmax; null: simcse 0.05, swav 0.1")
    prototypes: int | None = Field(None, ge=2, le=2**20, description="swav; null: 50 (pair), 20 (difference)")
    epsilon: float = Field(0.05, gt=0, description="swav: regularisation of its codes")
    iterations: int = Field(3, ge=0, description="swav: Sinkhorn iterations")
    queue: int = Field(0, ge=0, le=2**24, description="swav: earlier items that codes are made from too")
    freeze_prototypes: int = Field(0, ge=0, description="swav: steps before prototypes are trained")


class MetaConfig(Section):
    data: Paths = Field((), description="task meta: prompts, each with k or more responses sampled from the policy")
    k: int = Field(5, ge=2, le=1024, description="responses taken of each prompt, the first ones that differ")
    prompts_per_step: int | None = Field(None, ge=1, description="prompts in a step; null: data.pairs_per_step")
    eta: float = Field(5e-6, ge=0, description="step of the ascent on the difference loss J: eta times its gradient")
    rho: float | None = Field(None, gt=0, description="in place of eta: length of the ascent, whatever the gradient's")
    normaliser: Literal["k2", "pairs"] = Field("k2", description="of J: 2 / k^2 as in the paper, or mean over pairs")
    check_every: int | None = Field(10, ge=1, description="steps between measuring J after the ascent; null: never")


class EvalConfig(Section):
    every: int | None = Field(None, ge=1, description="steps between evaluations; null: only before and after training")
    at_start: bool = Field(True, description="evaluate before the first step")
    suites: Suites = Field((), description="suites scored after training, [LABEL:]SUITE=PATH each (see rmfast eval)")
    suites_every: int | None = Field(None, ge=1, description="steps between scoring the suites in training too")


class CheckpointConfig(Section):
    every: int | None = Field(None, ge=1, description="steps between checkpoints; null: only after the last step")
    keep: int = Field(2, ge=1, description="newest checkpoints that stay")


class ParallelConfig(Section):
    engine: Literal["native", "megatron"] = Field("native", description="what runs a step: torch, or megatron-core")
    data: Literal["ddp", "fsdp"] = Field("ddp", description="how ranks share the work: whole model, or FSDP2 shards")
    tensor: int = Field(1, ge=1, description="megatron: ranks that share each layer's products")
    pipeline: int = Field(1, ge=1, description="megatron: ranks that share the layers")
    virtual: int = Field(1, ge=1, description="megatron: runs of layers on each pipeline rank (interleaved schedule)")
    sequence: bool = Field(False, description="megatron: tensor ranks share the residual stream (sequence parallelism)")
    cuda_graphs: bool = Field(False, description="small models: packs of fixed shape, repeated without launch overhead")
    timeout_minutes: float = Field(60.0, gt=0, le=1e6, description="how long ranks wait for each other")


class EnsembleConfig(Section):
    members: int = Field(
        10,
        ge=2,
        le=1024,
        description="reward models, each with a data order of its own and, where model.path has none, a head too",
    )
    folds: int | None = Field(
        None, ge=2, description="K: member m leaves fold m mod K out and judges it alone; null: in-sample, as the paper"
    )
    mode: Literal["full", "heads"] = Field(
        "full", description="full: a reward run each; heads: heads alone, over one pass of the frozen trunk"
    )
    spread: Literal["turn", "ranks"] = Field(
        "turn", description="all ranks on one member after another, or groups of ranks on members of their own"
    )
    ranks_per_member: int | None = Field(
        None, ge=1, description="spread ranks: size of a group; null: 1, for megatron parallel.tensor x pipeline"
    )
    part: Annotated[int, Field(ge=0)] | Literal["vote"] | None = Field(
        None, description="for jobs that share run.dir: train this member alone, or vote over all; null: everything"
    )


class Config(Section):
    """One run."""

    task: Literal["reward", "ensemble", "meta"] = Field("reward", description="what is trained")
    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    denoise: DenoiseConfig = DenoiseConfig()
    optim: OptimConfig = OptimConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    meta: MetaConfig = MetaConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    ensemble: EnsembleConfig = EnsembleConfig()

    @model_validator(mode="after")
    def _members_differ(self) -> "Config":
        if self.task != "ensemble":
            return self
        ensemble, model, objective = self.ensemble, self.model, self.objective
        if ensemble.folds and ensemble.folds > ensemble.members:
            raise ValueError(
                f"ensemble.folds ({ensemble.folds}) is above ensemble.members ({ensemble.members}): "
                "no member would judge some folds"
            )
        if not self.data.shuffle:
            raise ValueError("data.shuffle false gives all members of an ensemble one data order")
        if ensemble.part is not None:
            if ensemble.part != "vote" and ensemble.part >= ensemble.members:
                raise ValueError(
                    f"ensemble.part ({ensemble.part}) is no member: they are 0 to {ensemble.members - 1} "
                    "(ensemble.members)"
                )
            if ensemble.mode == "heads" or ensemble.spread == "ranks":
                raise ValueError("ensemble.part needs ensemble.mode full and ensemble.spread turn")
            if self.run.resume == "never":
                raise ValueError("run.resume never would move away what jobs of other members (ensemble.part) are at")
        if ensemble.ranks_per_member and ensemble.spread == "turn":
            raise ValueError(
                "ensemble.ranks_per_member belongs to ensemble.spread ranks; under turn all ranks share each member"
            )
        if (model.heads or 1) > 1:
            raise ValueError(
                f"model.heads ({model.heads}) above 1: a member of an ensemble has one head; leave model.heads out "
                "and set ensemble.members"
            )
        if ensemble.mode == "heads":
            if model.top_layers or model.dropout or objective.lm:
                raise ValueError(
                    "ensemble.mode heads trains one head a member on a frozen trunk: it takes no model.top_layers "
                    "above 0, model.dropout or objective.lm"
                )
            if objective.contrastive != "none":
                raise ValueError("objective.contrastive trains nothing in ensemble.mode heads")
            if ensemble.spread == "ranks" or self.parallel.cuda_graphs:
                raise ValueError(
                    "ensemble.mode heads trains all heads at once: it takes no ensemble.spread ranks and no "
                    "parallel.cuda_graphs"
                )
        return self

    @model_validator(mode="after")
    def _contrastive(self) -> "Config":
        """Refuses what a contrastive term would have to read, and makes room for its views."""
        data, own = self.data, self.objective
        if own.contrastive == "none":
            self._refuse_set(("on", "beta", "views", "temperature"), "simcse or swav")
        if own.contrastive != "swav":
            self._refuse_set(("prototypes", "epsilon", "iterations", "queue", "freeze_prototypes"), "swav")
        if own.contrastive == "none" or own.views != "pass" or 2 * data.max_length <= data.tokens_per_pack:
            return self
        if "max_length" not in data.model_fields_set and data.tokens_per_pack >= 4:
            return self.model_copy(update={"data": data.with_default_length(data.tokens_per_pack // 2)})
        raise ValueError(
            f"data.tokens_per_pack ({data.tokens_per_pack}) is below twice data.max_length ({data.max_length}): "
            "no pack could hold a sequence of that length in the two views of objective.contrastive"
        )

    def _refuse_set(self, keys: tuple[str, ...], kinds: str) -> None:
        """Names the first of some keys that differs from its default; a resolved config holds all the others too."""
        for key in keys:
            if getattr(self.objective, key) != ObjectiveConfig.model_fields[key].default:
                raise ValueError(f"objective.{key} belongs to objective.contrastive {kinds}")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        data = self.data
        if data.tokens_per_pack < data.max_length:
            raise ValueError(
                f"data.tokens_per_pack ({data.tokens_per_pack}) is below data.max_length ({data.max_length}): "
                "no pack could hold a sequence of that length"
            )
        weights = data.train_weights
        if weights is not None:
            if len(weights) != len(data.train):
                raise ValueError(f"data.train_weights has {len(weights)} numbers for {len(data.train)} sources")
            if min(weights) < 0 or max(weights) == 0 or max(weights) > 1e6:
                raise ValueError("data.train_weights must be within 0 and 1,000,000, and one must be positive")
        if self.parallel.cuda_graphs and (self.parallel.data == "fsdp" or self.model.recompute != "none"):
            raise ValueError("parallel.cuda_graphs needs parallel.data ddp and model.recompute none")
        contrastive = self.objective.contrastive != "none"
        if contrastive and self.parallel.cuda_graphs:
            raise ValueError("parallel.cuda_graphs runs no contrastive term (objective.contrastive)")
        if contrastive and self.model.top_layers == 0:
            raise ValueError("objective.contrastive trains nothing while model.top_layers is 0 (head only)")
        if self.parallel.cuda_graphs and self.model.attention == "flash":
            raise ValueError("parallel.cuda_graphs cannot repeat model.attention flash (it reads lengths)")
        if self.objective.lm and self.model.top_layers == 0:
            raise ValueError("objective.lm trains nothing while model.top_layers is 0 (head only)")
        if self.task == "meta" and not self.meta.data:
            raise ValueError("meta.data is missing: task meta needs prompts with sampled responses")
        if self.meta.rho is not None and self.meta.eta != MetaConfig.model_fields["eta"].default:
            raise ValueError("meta.eta does nothing beside meta.rho: one of them sets the ascent's length")
        if self.eval.every and not data.eval:
            raise ValueError("eval.every is set but data.eval is empty")
        if self.eval.suites_every and not self.eval.suites:
            raise ValueError("eval.suites_every is set but eval.suites is empty")
        if self.eval.suites and self.task == "ensemble":
            raise ValueError("eval.suites belongs to one model; evaluate an ensemble with rmfast eval CKPT... --suite")
        if self.treatment().needs_strength and self.task == "ensemble":
            raise ValueError(
                "data.denoise and denoise.* go by strengths, which task ensemble is there to make: leave them out, and "
                "set them for task reward on the ensemble's data.jsonl (denoise.smooth of all edges may stay)"
            )
        return self

    @model_validator(mode="after")
    def _engine_runs_it(self) -> "Config":
        own = self.parallel
        if own.engine == "native":
            if (own.tensor, own.pipeline, own.virtual, own.sequence) != (1, 1, 1, False):
                raise ValueError(
                    "parallel.tensor, parallel.pipeline, parallel.virtual and parallel.sequence belong to "
                    "parallel.engine megatron"
                )
            return self
        if own.data == "fsdp":
            raise ValueError("parallel.data fsdp belongs to parallel.engine native; megatron shards optimizer state")
        if own.cuda_graphs:
            raise ValueError("parallel.cuda_graphs belongs to parallel.engine native")
        if own.sequence and own.tensor == 1:
            raise ValueError("parallel.sequence shares tokens among parallel.tensor ranks, of which there is one")
        if own.virtual > 1 and own.pipeline == 1:
            raise ValueError("parallel.virtual divides the layers of parallel.pipeline ranks, of which there is one")
        if self.task == "ensemble":
            if self.ensemble.mode == "heads":
                raise ValueError("parallel.engine megatron runs ensemble.mode full alone")
            if self.ranks_per_member % (own.tensor * own.pipeline):
                raise ValueError(
                    f"ensemble.ranks_per_member ({self.ranks_per_member}) is no multiple of parallel.tensor "
                    f"{own.tensor} x parallel.pipeline {own.pipeline}, which hold one model"
                )
        return self

    @property
    def ranks_per_member(self) -> int:
        """Ranks of each group under `ensemble.spread: ranks`."""
        return self.ensemble.ranks_per_member or self.parallel.tensor * self.parallel.pipeline

    def treatment(self) -> Denoise:
        """What is done to the training edges: the preset, with the denoise section's own values."""
        return resolve(self.data.denoise, self.denoise.model_dump())

    def dump(self) -> dict[str, Any]:
        """Plain values, as YAML holds them."""
        return self.model_dump(mode="json")
