"""The sections that every task reads: typed keys with their defaults, and which of them clash."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rmfast.config.base import (
    Beta,
    Columns,
    Counts,
    Dtype,
    EdgeSlice,
    LoraTargets,
    Numbers,
    Paths,
    PathText,
    Preset,
    ScheduleName,
    Section,
    Suites,
    TemplateText,
    refuse,
)
from rmfast.data.clock import DEFAULT_DATE, iso_date
from rmfast.data.denoise import Denoise, resolve
from rmfast.errors import KeyClash


class RunConfig(Section):
    dir: PathText = Field("runs/reward", description="folder of the run: metrics, checkpoints, model, report")
    seed: int = Field(0, ge=0, lt=2**31, description="decides data order, new heads and dropout")
    epochs: float = Field(1.0, gt=0, le=1e6, description="passes over the training data, where max_steps is null")
    max_steps: int | None = Field(
        None, ge=1, le=10**9, description="steps, which are iterations in ppo; null: `epochs` passes"
    )
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: from the newest checkpoint in dir; never: rename dir"
    )
    log_every: int = Field(1, ge=1, description="steps between console lines; metrics.jsonl has every step")
    tensorboard: bool = Field(True, description="write TensorBoard events to dir/tensorboard")
    wandb: bool = Field(False, description="log to wandb in offline mode (package wandb)")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads of each process; null: torch's choice")


class ModelConfig(Section):
    path: PathText = Field(..., description="Hugging Face folder or .gguf file: base, chat or reward model")
    dtype: Dtype = Field("float32", description="dtype of activations; weights are fp32 masters")
    from_scratch: bool = Field(
        False, description="take config and tokenizer from `path`; weights are randomly initialised"
    )
    heads: int | None = Field(None, ge=1, le=1024, description="reward heads; null: as in `path`, or 1")
    top_layers: int | None = Field(None, ge=0, description="train only the top k layers, norm and head; 0: head only")
    adapter: Literal["none", "lora"] = Field("none", description="lora: train low-rank adapters and the head alone")
    lora_rank: int = Field(16, ge=1, le=4096, description="rank of each adapter")
    lora_alpha: float | None = Field(None, gt=0, description="its term is times alpha / rank; null: 2 x rank")
    lora_targets: LoraTargets | None = Field(
        None, description="adapted layers: q_proj k_proj v_proj o_proj gate_proj up_proj down_proj; null: all"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on what adapters read, in training")
    lora_rslora: bool = Field(False, description="alpha / sqrt(rank) in place of alpha / rank")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout on residual branches in training; null: 0, with a contrastive term 0.05"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed again to save memory: norms, RoPE and SwiGLU, or whole layers"
    )
    kernels: Literal["auto", "triton", "reference"] = Field(
        "auto", description="auto: Triton on CUDA, plain torch (reference) elsewhere"
    )
    attention: Literal["kernel", "flash"] = Field(
        "kernel", description="over packs; kernel: as model.kernels; flash: flash_attn's or torch's (CUDA, bf16)"
    )

    def check(self, config: "Shared") -> None:
        if self.adapter == "none":
            for key in ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "lora_rslora"):
                differs = getattr(self, key) != ModelConfig.model_fields[key].default
                refuse(differs, f"model.{key}", "belongs to model.adapter lora")
            return
        layers = "chooses layers to train, and model.adapter lora trains adapters"
        refuse(self.top_layers is not None, "model.top_layers", layers, "model.adapter")
        nothing = "leaves model.adapter lora no trained weights to adapt"
        refuse(self.from_scratch, "model.from_scratch", nothing, "model.adapter")


class DataConfig(Section):
    train: Paths = Field(
        (), description="required but for task ppo: files, folders or datasets names (NAME[:CONFIG][#SPLIT])"
    )
    eval: Paths = Field((), description="held-out data, in the same forms")
    train_weights: Numbers | None = Field(None, description="passes over each training source in an epoch; null: 1")
    max_length: int = Field(1024, ge=2, lt=2**31, description="tokens of prompt + response")
    over_long: Literal["drop", "truncate", "error"] = Field("drop", description="truncate: the left of the prompt")
    bad_rows: Literal["drop", "error"] = Field("drop", description="rows that cannot be used: counted, or fatal")
    pairs_per_step: int = Field(
        8, ge=1, description="global batch in prompt groups (a pair, a ranked list or a demonstration)"
    )
    tokens_per_pack: int = Field(16384, ge=2, lt=2**31, description="token budget of one forward pass")
    shuffle: bool = Field(True, description="new order each epoch; false: as in the files")
    columns: Columns = Field(
        (),
        description="meaning of other columns: THEIRS=OURS, a layout (orca, alpaca, ...), ignore (docs/data.md)",
    )
    chat_template: TemplateText | None = Field(
        None, description="jinja file or text, in place of the tokenizer's template"
    )
    template_date: Annotated[str, BeforeValidator(iso_date)] = Field(
        DEFAULT_DATE, description="YYYY-MM-DD, the date for a chat template that reads the clock"
    )
    cache: PathText = Field("~/.cache/rmfast", description="where tokenised data is kept")
    workers: int | None = Field(None, ge=1, le=4096, description="tokenising processes; null: the number of cores")
    denoise: Preset | None = Field(None, description="treatment of training edges by their strength (denoise.*)")

    def fitted(self, copies: int) -> "DataConfig":
        """The same; a `max_length` that is not set is lowered until a pack holds a sequence so many times."""
        longest = max(2, self.tokens_per_pack // copies)
        if "max_length" in self.model_fields_set or longest >= self.max_length:
            return self
        out = self.model_copy(update={"max_length": longest})
        out.model_fields_set.discard("max_length")
        return out

    def check(self, config: "Shared") -> None:
        copies, words = (
            config.objective.copies,
            {1: ("", ""), 2: ("twice ", " in the two views of objective.contrastive")},
        )
        twice, views = words[copies]
        refuse(
            self.tokens_per_pack < copies * self.max_length,
            "data.tokens_per_pack",
            f"({self.tokens_per_pack}) is below {twice}data.max_length ({self.max_length}): "
            f"no pack could hold a sequence of that length{views}",
            "data.max_length",
        )
        if (weights := self.train_weights) is not None:
            key, sources = "data.train_weights", len(self.train)
            refuse(len(weights) != sources, key, f"has {len(weights)} numbers for {sources} sources")
            usable = min(weights) >= 0 and 0 < max(weights) <= 1e6
            refuse(not usable, key, "must be within 0 and 1,000,000, and one must be positive")


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

    def check(self, config: "Shared") -> None:
        config.denoise_options()


class OptimConfig(Section):
    lr: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    schedule: ScheduleName = Field("linear", description="of the learning rate after the warm-up")
    warmup: float = Field(0.0, ge=0, description="warm-up steps; below 1: share of all steps")
    floor: float = Field(0.0, ge=0, le=1, description="share of lr at which linear and cosine end")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, on matrices")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 for none")
    backend: Literal["auto", "torch", "csrc", "apex"] = Field(
        "auto", description="what computes AdamW; auto: the compiled ops of csrc where they were built, else torch's"
    )
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="a NaN or Inf loss or gradient: stop, or skip it")
    max_skipped: int = Field(10, ge=1, description="steps in a row that may be skipped; one more ends the run")


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

    @property
    def copies(self) -> int:
        """How many times a pack holds a sequence: twice where its second view is a pass of all its tokens."""
        return 2 if self.contrastive != "none" and self.views == "pass" else 1

    def check(self, config: "Shared") -> None:
        if self.contrastive == "none":
            self._refuse_set(("on", "beta", "views", "temperature"), "simcse or swav")
        if self.contrastive != "swav":
            self._refuse_set(("prototypes", "epsilon", "iterations", "queue", "freeze_prototypes"), "swav")
        if config.model.top_layers == 0:
            for key, active in {"contrastive": self.contrastive != "none", "lm": self.lm > 0}.items():
                refuse(active, f"objective.{key}", "trains nothing while model.top_layers is 0 (head only)")

    def _refuse_set(self, keys: tuple[str, ...], kinds: str) -> None:
        """Refuse the first of some keys that differs from its default; a resolved config sets all the others, too."""
        for key in keys:
            differs = getattr(self, key) != ObjectiveConfig.model_fields[key].default
            refuse(differs, f"objective.{key}", f"belongs to objective.contrastive {kinds}")


class EvalConfig(Section):
    every: int | None = Field(None, ge=1, description="steps between evaluations; null: only before and after training")
    at_start: bool = Field(True, description="evaluate before the first step")
    suites: Suites = Field((), description="suites scored after training, [LABEL:]SUITE=PATH each (see rmfast eval)")
    suites_every: int | None = Field(None, ge=1, description="steps between scoring the suites in training too")

    def check(self, config: "Shared") -> None:
        held_out = config.data.eval or config.task in ("ppo", "iterate")  # whose key is ppo.eval_prompts
        refuse(self.every and not held_out, "eval.every", "is set but data.eval is empty")
        refuse(self.suites_every and not self.suites, "eval.suites_every", "is set but eval.suites is empty")


class CheckpointConfig(Section):
    every: int | None = Field(None, ge=1, description="steps between checkpoints; null: only after the last step")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")


class ParallelConfig(Section):
    engine: Literal["native", "megatron"] = Field("native", description="runs a step: torch (native) or megatron-core")
    data: Literal["ddp", "fsdp"] = Field("ddp", description="how ranks share the work: whole model, or FSDP2 shards")
    tensor: int = Field(1, ge=1, description="megatron: ranks that share each layer's matmuls")
    pipeline: int = Field(1, ge=1, description="megatron: ranks that share the layers")
    virtual: int = Field(1, ge=1, description="megatron: runs of layers on each pipeline rank (interleaved schedule)")
    pipeline_split: Counts | None = Field(
        None, description="megatron: layers of each run (pipeline x virtual numbers), in order; null: as many each"
    )
    sequence: bool = Field(False, description="megatron: tensor ranks share the residual stream (sequence parallelism)")
    cuda_graphs: bool = Field(False, description="small models: packs of fixed shape, run as recorded CUDA graphs")
    timeout_minutes: float = Field(60.0, gt=0, le=1e6, description="how long ranks wait for each other")
    lock_minutes: float = Field(
        3.0, ge=1, le=1e6, description="without a sign of the run folder's holder on another machine until it is free"
    )

    def check(self, config: "Shared") -> None:
        native = self.engine == "native"
        if self.cuda_graphs:
            plain = self.data == "ddp" and config.model.recompute == "none"
            for clash, text in (
                (not plain, "needs parallel.data ddp and model.recompute none"),
                (config.objective.contrastive != "none", "runs no contrastive term (objective.contrastive)"),
                (config.model.attention == "flash", "cannot repeat model.attention flash (it reads lengths)"),
                (not native, "belongs to parallel.engine native"),
            ):
                refuse(clash, "parallel.cuda_graphs", text)
        keys = [f"parallel.{name}" for name in ("tensor", "pipeline", "virtual", "sequence")]
        if native and (self.tensor, self.pipeline, self.virtual, self.sequence) != (1, 1, 1, False):
            raise KeyClash(f"{', '.join(keys[:3])} and {keys[3]} belong to parallel.engine megatron", *keys)
        split = native and self.pipeline_split is not None
        refuse(split, "parallel.pipeline_split", "belongs to parallel.engine megatron")
        fsdp = not native and self.data == "fsdp"
        refuse(fsdp, "parallel.data", "fsdp belongs to parallel.engine native; megatron shards optimizer state")
        alone = self.sequence and self.tensor == 1
        refuse(alone, "parallel.sequence", "shares tokens among parallel.tensor ranks, of which there is one")
        alone = self.virtual > 1 and self.pipeline == 1
        refuse(alone, "parallel.virtual", "divides the layers of parallel.pipeline ranks, of which there is one")


class Shared(Section):
    """What every task reads."""

    task: Literal["reward", "ensemble", "meta", "sft", "ppo", "iterate"] = Field(
        "reward", description="what is trained"
    )
    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    denoise: DenoiseConfig = DenoiseConfig()
    optim: OptimConfig = OptimConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _pairs_are_there(self) -> "Shared":
        if not self.data.train and self.task != "ppo":
            raise KeyClash("data.train: missing; set it in the file or with --data.train", "data.train")
        return self

    def denoise_options(self) -> Denoise:
        """What is done to the training edges: the preset, with the values of the denoise section in its place."""
        return resolve(self.data.denoise, self.denoise.model_dump())

    def dump(self) -> dict[str, Any]:
        """Plain values, as YAML holds them."""
        return self.model_dump(mode="json")
