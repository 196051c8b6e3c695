"""ensemble.mode heads: one pass of the frozen trunk over all data, then every member's head at once on its features."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmfast.checkpoint.export import check_export, check_tokenizer, choose_pad_token, write_model
from rmfast.data.files import publish, sync, write_text, written_whole
from rmfast.data.table import GroupTable, table_edges
from rmfast.errors import RunError, UserError, first_line
from rmfast.evaluation.combine import combined_metrics
from rmfast.evaluation.scoring.score import CHUNK, score_table
from rmfast.kernels import describe, rms_norm
from rmfast.models.config import DTYPES
from rmfast.models.hf import load_network
from rmfast.models.reward import Outputs, PackInputs, RewardNetwork, initialise
from rmfast.models.weights import HEAD
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.optimizer import AdamWOptions
from rmfast.parallel.world import World
from rmfast.tasks.attention import choose_attention
from rmfast.tasks.folds import select
from rmfast.tasks.inputs import step_plan
from rmfast.tasks.members import Ensemble, all_or_none, member_config, open_folder, read_scores, write_scores
from rmfast.tasks.model import head_line, stored_heads
from rmfast.trainer.head_batch import HeadData, HeadMember
from rmfast.trainer.heads import HeadOptions, HeadTrainer, head_scores
from rmfast.trainer.log import RunLog, say
from rmfast.trainer.stop import StopRequest

SAVED = "heads.safetensors"


class Trunk(RewardNetwork):
    """A reward network whose "scores" are what its heads would read: the final norm's output, fp32 [S, d]."""

    def __init__(self, network: RewardNetwork) -> None:
        super().__init__(network.decoder)
        self.norm = network.norm
        del self.head
        self.requires_grad_(False)

    def forward(self, pack: PackInputs, before: Tensor | None = None) -> Outputs:
        hidden = self.decoder(pack.tokens, pack.positions, pack.layout, pack.scored, before)
        impl = self.decoder.impl
        return Outputs(rms_norm(hidden.float(), self.norm.weight.float(), eps=self.config.norm_eps, impl=impl), None)


def train_heads(ensemble: Ensemble, stop: StopRequest) -> None:
    """Train all heads and keep the rewards of each; what is there already is not done again. All ranks call it."""
    config, world = ensemble.config, ensemble.world
    members = config.ensemble.members
    saved = _saved(ensemble.folder / SAVED)
    same = saved is not None and saved.heads == members
    done = same and all(read_scores(ensemble, m) is not None for m in range(members))
    world.barrier()  # all ranks must have looked before rank 0 writes
    if done:
        if world.main:
            say(f"all {members} heads: done before")
        return
    model = config.model
    network, _ = load_network(
        model.path,
        new_heads=True,
        seed=config.run.seed,
        from_scratch=model.from_scratch,
        dtype=DTYPES[model.dtype],
        impl=model.kernels,
    )
    choose_pad_token(
        ensemble.tokenizer, network.config.vocabulary, ensemble.ends
    )  # found out now rather than at the export
    drawn = model.from_scratch or not stored_heads(model.path)
    heads = torch.cat([_first_head(network, ensemble, m, drawn) for m in range(members)])
    tables, place = _tables(ensemble)
    if world.main:
        if saved is not None and not same:
            _forget(ensemble, saved.heads)
        open_folder(ensemble)
    engine = _engine(ensemble, network)
    features = _features(ensemble, engine, tables)
    weights = engine.weights()
    all_or_none(
        world,
        lambda: (
            _fit_and_export(
                ensemble, network, weights, heads, tables, features, place, saved if same else None, stop.alone()
            )
            if world.main
            else None
        ),
    )


@dataclass(frozen=True)
class Saved:
    """What a `HeadTrainer` goes on from, after a number of steps."""

    state: dict[str, Tensor]
    step: int
    heads: int


def _saved(file: Path) -> Saved | None:
    """What `_fit` saved last; None where it has not.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as saved:
            state = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
            return Saved(state, int(saved.metadata()["step"]), len(state["weight"]))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{file}: damaged ({first_line(error)}); delete it, and the heads are trained again on features.npy"
        ) from None


def _forget(ensemble: Ensemble, count: int) -> None:
    """Another number of heads: all begin again. Their rewards go first, or a crash would leave old ones that look
    finished."""
    folder, members = ensemble.folder, ensemble.config.ensemble.members
    say(f"{folder} holds {count} heads, now ensemble.members is {members}: all are trained again")
    for scores in sorted((folder / "members").glob("*/scores.npz")):
        scores.unlink()
        with contextlib.suppress(OSError):  # something else is in it
            scores.parent.rmdir()
    if (folder / "members").is_dir():
        sync(folder / "members")
    (folder / SAVED).unlink()
    sync(folder)


def _first_head(network: RewardNetwork, ensemble: Ensemble, member: int, drawn: bool) -> Tensor:
    """fp32 [1, d]: the head that the member's own reward run would begin with."""
    if drawn:
        initialise(network, member_config(ensemble.config, member, ensemble.folder).run.seed, {HEAD})
    return network.head.weight.detach().clone()


def _tables(ensemble: Ensemble) -> tuple[dict[str, GroupTable], np.ndarray]:
    """The tables that the trunk passes over, in the order of their features, and where the features of the training
    table's responses lie. Prompts that training cuts are passed over twice, cut and whole."""
    table, whole = ensemble.table, ensemble.whole
    tables = {"data": whole} | {f"eval:{name}": held_out for name, held_out in ensemble.evals.items()}
    counts = np.diff(table.first_response)
    cut = np.flatnonzero(table.cut)
    begin = whole.first_response[ensemble.place].copy()
    if len(cut):
        behind = sum(int(t.first_response[-1]) for t in tables.values())
        tables["cut"] = select(table, cut)
        begin[cut] = behind + tables["cut"].first_response[:-1]
    within = np.arange(int(counts.sum())) - np.repeat(table.first_response[:-1], counts)
    return tables, np.repeat(begin, counts) + within


def _engine(ensemble: Ensemble, network: RewardNetwork) -> NativeEngine:
    config, world = ensemble.config, ensemble.world
    sharded = config.parallel.data == "fsdp"
    engine = NativeEngine(
        Trunk(network),
        world=world if sharded else World.alone(world),  # DDP would look for gradients
        options=AdamWOptions(),
        data_parallel=config.parallel.data,
    )
    plan, _ = step_plan(config, ensemble.table)
    attention = choose_attention(config, network.config, ensemble.table, plan, world, None)
    engine.network.decoder.attend_with(attention)
    if world.main:
        whole = sum(p.numel() for p in network.parameters())
        say(
            f"{config.model.path}: frozen trunk of {whole / 1e6:.1f} M weights, {config.model.dtype}, "
            f"{world.size} x {world.device.type}, {describe(world.device, config.model.kernels)}"
            f"{', flash attention' if attention == 'flash' else ''}; {config.ensemble.members} heads"
        )
        say(head_line(config, ensemble.hf, ensemble.tokenizer))
    return engine


def _features(ensemble: Ensemble, engine: NativeEngine, tables: dict[str, GroupTable]) -> np.ndarray:
    """Features fp32 [F, d] of all tables' responses, memory-mapped from run.dir/features.npy; made where they are not
    there for this very trunk and data.

    Raises:
        RunError: features that are not finite.
    """
    world, folder = ensemble.world, ensemble.folder
    file, note = folder / "features.npy", folder / "features.json"
    key = _features_key(ensemble, tables) if world.main else ""
    size = sum(int(table.first_response[-1]) for table in tables.values())
    width = engine.network.config.width
    found = world.main and _made_before(file, note, key, (size, width))
    if world.sum_(torch.tensor(float(found))):
        if world.main:
            say(f"features of {file}: made before")
        return _open(file, world)
    temporary = file.with_name(".features.partial.npy")
    out = None
    if world.main:
        note.unlink(missing_ok=True)  # for good, before other features stand under its key
        sync(folder)
        say(f"one pass of the trunk: {size:,} responses x {width} features ({4 * size * width / 2**30:.2f} GiB)")
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(size, width))
    broken = begin = 0
    for table in tables.values():
        for rows in _chunks(len(table)):
            part = select(table, rows)
            values = score_table(engine.score, part, world, budget=ensemble.config.data.tokens_per_pack)
            broken += int((~np.isfinite(values)).any(1).sum())
            if out is not None:
                out[begin : begin + len(values)] = values
            begin += len(values)
    if broken:
        raise RunError(
            f"{ensemble.config.model.path}: the trunk gives {broken:,} responses features that are not finite"
        )
    if out is not None:
        out.flush()
        del out
        publish(temporary, file)
        write_text(note, json.dumps({"key": key}) + "\n")
    return _open(file, world)


def _made_before(file: Path, note: Path, key: str, shape: tuple[int, int]) -> bool:
    """Whether features of that key and shape are there; what cannot be read is not."""
    if not note.is_file():
        return False
    try:
        return bool(
            json.loads(note.read_text(encoding="utf-8"))["key"] == key and np.load(file, mmap_mode="r").shape == shape
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        say(f"{file}: damaged, with {note.name} ({first_line(error)}); made again")
        return False


def _open(file: Path, world: World) -> np.ndarray:
    """Only rank 0 reads them."""
    return np.load(file, mmap_mode="r") if world.main else np.empty((0, 0), np.float32)


def _chunks(count: int) -> Iterator[np.ndarray]:
    return (np.arange(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK))


def _features_key(ensemble: Ensemble, tables: dict[str, GroupTable]) -> str:
    """Of the trunk's files and every sequence that it passes over."""
    model = ensemble.config.model
    seed = ensemble.config.run.seed if model.from_scratch else None
    digest = hashlib.sha256(repr((model.dtype, model.from_scratch, seed)).encode())
    path = Path(model.path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors")) if path.is_dir() else [path]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    for name, table in tables.items():
        digest.update(repr((name, [store.meta["key"] for store in table.stores])).encode())
        for column in (table.store, table.index, table.cut):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _fit_and_export(
    ensemble: Ensemble,
    network: RewardNetwork,
    state: dict[str, Tensor],
    heads: Tensor,
    tables: dict[str, GroupTable],
    features: np.ndarray,
    place: np.ndarray,
    saved: Saved | None,
    stop: StopRequest,
) -> None:
    """What rank 0 does alone: train the heads on the features, export, keep every member's rewards."""
    trainer = _trainer(ensemble, heads, HeadData(features=features, place=place, edges=table_edges(ensemble.table)))
    ends = np.cumsum([0, *(int(table.first_response[-1]) for table in tables.values())])
    spans = {name: slice(int(a), int(b)) for name, a, b in zip(tables, ends[:-1], ends[1:], strict=True)}
    _fit(ensemble, trainer, saved, {name: features[spans[f"eval:{name}"]] for name in ensemble.evals}, stop)
    scores = head_scores(features, trainer.weight)
    state[HEAD] = trainer.weight.cpu()
    _export(ensemble, network, state, scores)
    responses = np.diff(ensemble.whole.first_response)
    for m in range(len(heads)):
        judged = np.repeat(ensemble.judges(m), responses)
        evals = {name: scores[m, spans[f"eval:{name}"]] for name in ensemble.evals}
        write_scores(ensemble, m, np.where(judged, scores[m, spans["data"]], np.nan), evals)


def _trainer(ensemble: Ensemble, heads: Tensor, data: HeadData) -> HeadTrainer:
    config, optim = ensemble.config, ensemble.config.optim
    members = []
    for m in range(len(heads)):
        groups = ensemble.trains_on(m)
        own = member_config(config, m, ensemble.folder)
        plan, total = step_plan(own, select(ensemble.table, groups))
        members.append(HeadMember(plan=plan, groups=groups, total=total))
    options = HeadOptions(
        lr=optim.lr,
        schedule=optim.schedule,
        warmup=optim.warmup,
        floor=optim.floor,
        adamw=AdamWOptions(betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, clip=optim.clip),
        center=config.objective.center,
        on_nonfinite=optim.on_nonfinite,
        impl=config.model.kernels,
    )
    return HeadTrainer(heads, members, data, options, ensemble.world.device)


def _fit(
    ensemble: Ensemble, trainer: HeadTrainer, saved: Saved | None, held_out: dict[str, np.ndarray], stop: StopRequest
) -> None:
    """Go on from the last saved step to the end.

    Args:
        held_out: features of the held-out tables' responses, by name.
    """
    config, run = ensemble.config, ensemble.config.run

    def save() -> None:
        state = {name: tensor.cpu().contiguous() for name, tensor in trainer.state().items()}
        with written_whole(ensemble.folder / SAVED) as temporary:
            save_file(state, temporary, metadata={"step": str(trainer.done)})

    if saved is not None:
        trainer.load_state(saved.state, saved.step)
        say(f"resumed from step {trainer.done} in {ensemble.folder}")
    log = RunLog(
        ensemble.folder,
        last_step=trainer.done,
        total=trainer.total,
        every=run.log_every,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
        config=config.dump(),
    )
    seconds: list[float] = []

    def line(values: dict[str, Any]) -> None:
        seconds.append(values["step_seconds"])
        log.step(values, float(np.mean(seconds[-50:])) * (trainer.total - values["step"]))

    def evaluate() -> None:
        _evaluate(ensemble, trainer, held_out, log)

    try:
        if trainer.done == 0 and config.eval.at_start:
            evaluate()
        every = {"save_every": config.checkpoint.every, "eval_every": config.eval.every}
        trainer.fit(line, save=save, evaluate=evaluate, stop=stop, **every)
        evaluate()
    finally:
        log.close()


def _evaluate(ensemble: Ensemble, trainer: HeadTrainer, held_out: dict[str, np.ndarray], log: RunLog) -> None:
    """The mean over heads on the held-out data, as a reward run leaves it."""
    for name, table in ensemble.evals.items():
        edges, scores = table_edges(table), head_scores(held_out[name], trainer.weight)
        metrics = combined_metrics(scores, edges, "mean", center=ensemble.config.objective.center)
        log.evaluation(trainer.done, name, {f"eval_{key}": value for key, value in metrics.items()})
        labels = np.repeat([table.label(g) for g in range(len(table))], np.diff(table.first_response))
        arrays = {"scores": scores.mean(0), "better": edges.better, "worse": edges.worse, "lengths": edges.length}
        (ensemble.folder / "eval").mkdir(exist_ok=True)
        np.savez_compressed(ensemble.folder / "eval" / f"{name}-final.npz", allow_pickle=False, labels=labels, **arrays)


def _export(ensemble: Ensemble, network: RewardNetwork, state: dict[str, Tensor], scores: np.ndarray) -> None:
    """One Hugging Face folder with a head for each member, checked against transformers."""
    folder, dtype = ensemble.folder / "model", DTYPES[ensemble.config.model.dtype]
    write_model(
        folder,
        hf=ensemble.hf,
        config=network.config,
        state=state,
        tokenizer=ensemble.tokenizer,
        dtype=dtype,
        ends=ensemble.ends,
    )
    state.clear()  # whole and on the CPU, and transformers now loads another copy
    whole = ensemble.whole
    by_length = np.argsort(whole.stored, kind="stable")
    rows = np.unique(by_length[[0, len(whole) // 4, len(whole) // 2]])
    sequences = [s for row in rows for s in whole.sequences_of(int(row))]
    places = np.concatenate([np.arange(whole.first_response[row], whole.first_response[row + 1]) for row in rows])
    check_tokenizer(folder, ensemble.tokenizer)
    difference = check_export(folder, sequences, torch.from_numpy(scores[:, places].T.copy()).float(), dtype)
    say(f"exported {folder} ({len(scores)} heads); transformers gives the same scores (difference {difference:.0e})")
