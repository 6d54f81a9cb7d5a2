"""Pretrains the bundled encoder, loopjax-nano, on rendered loops.

    python -m scripts.render --n 7000 --seed 1 -o LOOPS
    python -m scripts.nano.pretrain scripts/nano/pretrain.yaml --set data=[LOOPS] --set out=RUN

The last command again resumes a killed run.

Supervised: linear heads on the embedding name the program, family, pattern and planted
degradation of each loop, beside a supervised contrastive loss whose classes are the programs of
clean loops and the kinds of degraded ones; further heads tell what the onsets say about the rhythm
(`scripts.nano.rhythm`). Some loops are played backwards on the fly, which
makes them "reversed" (or clean again). Long clips come in batches of their own, so that the AFF
branch is trained as well. The step is jitted and data-parallel over all devices; a killed run
resumes from its last Orbax checkpoint. The learning rate is constant until its decay begins, so
`steps` may be changed until then.
"""

import argparse
import dataclasses
import json
import platform
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.console import Console

from loopjax.config import read_config
from loopjax.encoders.encoder import flatten_state
from loopjax.encoders.load import load_encoder
from loopjax.encoders.storage import save_encoder
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import Htsat, HtsatConfig
from scripts.nano.data import LoopMels, Task, augment, play_backwards, stretch
from scripts.nano.rhythm import RhythmHeads, rhythm_error


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe; every value is in scripts/nano/pretrain.yaml."""

    data: tuple[str, ...]
    out: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    weight_decay: float
    backwards_share: float
    stretch: float
    long_every: int
    rhythm_weight: float
    contrastive_weight: float
    temperature: float
    label_smoothing: float
    task_weights: dict[str, float]
    precision: str = "fp32"
    start_from: str | None = None
    seed: int = 0
    checkpoint_every: int = 200


class Pretrainer(nnx.Module):
    """The encoder, one linear head per task, and the heads of the rhythm targets."""

    def __init__(self, config: HtsatConfig, tasks: list[Task], dtype, *, rngs: nnx.Rngs):
        self.encoder = Htsat(config, dtype=dtype, rngs=rngs)
        self.rhythm = RhythmHeads(config.embedding_dim, rngs=rngs)
        self.heads = nnx.Dict(
            {t.name: nnx.Linear(config.embedding_dim, t.n_classes, rngs=rngs) for t in tasks}
        )

    def __call__(self, mel, longer, key):
        """Embeddings [B, C], logits by task, and the rhythm as the heads see it."""
        key_of = lambda i: None if key is None else jax.random.fold_in(key, i)  # noqa: E731
        x = self.encoder.patch_embed(self.encoder.bn0(mel), longer)
        *first, last = self.encoder.stages
        for i, stage in enumerate(first):
            x = stage(x, key_of(i))
        *before, final = last.blocks
        for i, block in enumerate(before):
            x = block(x, key_of(len(first) + i))
        middle, x = x, final(x, key_of(len(first) + len(before)))
        embedding = self.encoder.norm(x).astype(jnp.float32).mean(axis=1)
        logits = {name: head(embedding) for name, head in self.heads.items()}
        return embedding, logits, self.rhythm(middle, embedding)


def is_trained(path, value) -> bool:
    """All parameters but those of bn0, which only standardizes the input."""
    return isinstance(value, nnx.Param) and "bn0" not in path


def supervised_contrastive(embedding, labels, temperature):
    """SupCon (Khosla et al. 2020): rows with the same label attract, all others repel."""
    z = embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)
    eye = jnp.eye(len(z), dtype=bool)
    similarity = jnp.where(eye, -1e9, z @ z.T / temperature)
    log_share = similarity - jax.nn.logsumexp(similarity, axis=1, keepdims=True)
    same = (labels[:, None] == labels) & ~eye & (labels >= 0)
    count = same.sum(axis=1)
    per_row = -(jnp.where(same, log_share, 0.0).sum(axis=1)) / jnp.maximum(count, 1)
    return (per_row * (count > 0)).sum() / jnp.maximum((count > 0).sum(), 1)


def task_losses(logits, labels, class_weights, smoothing):
    """Weighted cross-entropy and accuracy per task; label -1: the row does not count."""
    losses, hits = {}, {}
    for name, value in logits.items():
        target, known = jnp.maximum(labels[name], 0), labels[name] >= 0
        one_hot = optax.smooth_labels(jax.nn.one_hot(target, value.shape[1]), smoothing)
        weight = known * class_weights[name][target]
        per_row = optax.softmax_cross_entropy(value, one_hot)
        losses[name] = (per_row * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
        hits[name] = ((value.argmax(1) == target) & known).sum() / jnp.maximum(known.sum(), 1)
    return losses, hits


def make_step(graphdef, optimizer, loops: LoopMels, config: PretrainConfig):
    """The jitted training step; it compiles once for short batches and once for long ones."""
    n_programs = next(task.n_classes for task in loops.tasks if task.name == "program")

    def loss_fn(params, rest, batch, statistics, key):
        model = nnx.merge(graphdef, params, rest, copy=True)  # its statistics change in here
        flip_key, stretch_key, augment_key, drop_key = jax.random.split(key, 4)
        mel, degradation = play_backwards(
            batch["mel"],
            batch["labels"]["degradation"],
            (loops.clean, loops.reversed),
            config.backwards_share,
            flip_key,
        )
        labels = batch["labels"] | {"degradation": degradation}
        mel = stretch(mel, config.stretch, stretch_key)
        longer = jnp.ones(mel.shape[0], bool) if mel.shape[1] > 1 else None
        embedding, logits, rhythm = model(augment(mel, augment_key), longer, drop_key)
        errors = rhythm_error(rhythm, mel[:, 0], *statistics["rhythm"])
        losses, hits = task_losses(logits, labels, statistics["classes"], config.label_smoothing)
        clean = degradation == loops.clean
        kinds = jnp.where(clean, labels["program"], n_programs + degradation)
        contrast = supervised_contrastive(
            embedding, jnp.where(degradation < 0, -1, kinds), config.temperature
        )
        total = config.contrastive_weight * contrast
        total += sum(config.task_weights[name] * value for name, value in losses.items())
        total += config.rhythm_weight * (errors.lags + errors.regularity)
        metrics = {f"acc_{name}": value for name, value in hits.items()}
        metrics |= {"loss": total, "contrastive": contrast, **errors._asdict()}
        off_grid = degradation == loops.off_grid
        found = off_grid & (logits["degradation"].argmax(axis=1) == loops.off_grid)
        metrics["recall_off_grid"] = found.sum() / jnp.maximum(off_grid.sum(), 1)
        return total, (nnx.state(model, nnx.Not(is_trained)), metrics)

    def step(state, batch, statistics, key):
        grads, (rest, metrics) = jax.grad(loss_fn, has_aux=True)(
            state["params"], state["rest"], batch, statistics, key
        )
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics["grad_norm"] = optax.global_norm(grads)
        return {"params": params, "rest": rest, "opt": opt}, metrics

    return jax.jit(step, donate_argnums=0)


def make_optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """AdamW; warm-up, constant, cosine decay; norms, biases and bias tables are not decayed."""
    rate = config.learning_rate
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, config.warmup_steps),
            optax.constant_schedule(rate),
            optax.cosine_decay_schedule(rate, config.decay_steps, alpha=0.01),
        ],
        [config.warmup_steps, config.steps - config.decay_steps],
    )
    kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels),
    )


def train(config: PretrainConfig) -> None:
    """Runs (or resumes) the recipe and writes `OUT/encoder` and `OUT/metrics.jsonl`."""
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    mel_config = LogMelConfig.clap_fused()
    folders = [Path(folder) for folder in config.data]
    loops = LoopMels(folders, mel_config, config.long_every, config.seed)
    tasks = [task for task in loops.tasks if config.task_weights.get(task.name)]
    dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
    model = Pretrainer(HtsatConfig.nano(), tasks, dtype, rngs=nnx.Rngs(config.seed))
    if config.start_from:
        nnx.update(model.encoder, load_encoder(config.start_from, "fp32").params)
    else:
        mean, var = map(jnp.asarray, loops.band_statistics())
        model.encoder.bn0.mean[...], model.encoder.bn0.var[...] = mean, var
    model.train()
    model.encoder.bn0.eval()  # fixed statistics of the corpus: batches cannot shift the input
    graphdef, params, rest = nnx.split(model, is_trained, ...)
    optimizer = make_optimizer(config)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    everywhere = jax.sharding.NamedSharding(mesh, spec())
    split = jax.sharding.NamedSharding(mesh, spec("data"))
    state = {"params": params, "rest": rest, "opt": optimizer.init(params)}
    state = jax.device_put(state, everywhere)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(out / "checkpoints", options=options) as manager:
        statistics = {"classes": loops.class_weights(), "rhythm": loops.rhythm_statistics()}
        statistics = jax.device_put(statistics, everywhere)
        first = manager.latest_step() or 0
        if first:
            state = manager.restore(first, args=ocp.args.StandardRestore(state))
        step_fn, base_key = (
            make_step(graphdef, optimizer, loops, config),
            jax.random.key(config.seed),
        )
        log = (out / "metrics.jsonl").open("a", encoding="utf-8")
        console, started = Console(stderr=True), time.monotonic()
        for step in range(first, config.steps):
            batch = jax.device_put(loops.batch(step, config.batch_size), split)
            key = jax.random.fold_in(base_key, step)
            state, metrics = step_fn(state, batch, statistics, key)
            if step % 50 == 0 or step == config.steps - 1:
                row = {k: round(float(v), 4) for k, v in metrics.items()}
                row |= {"step": step, "long": bool(batch["mel"].shape[1] > 1)}
                row["elapsed_s"] = round(time.monotonic() - started, 1)
                log.write(json.dumps(row) + "\n")
                log.flush()
                console.print(row)
            if (step + 1) % config.checkpoint_every == 0:
                manager.save(step + 1, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
                export(graphdef, state, config, mel_config, out / "encoder", step + 1)
    export(graphdef, state, config, mel_config, out / "encoder", config.steps)
    accuracy = validate(graphdef, state, loops, config)
    (out / "validation.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    console.print(accuracy)


def validate(graphdef, state, loops: LoopMels, config: PretrainConfig) -> dict[str, float]:
    """Accuracy of each head, and recall of each degradation, on the held-back short loops."""

    @jax.jit
    def predict(params, rest, mel):
        model = nnx.merge(graphdef, params, rest)
        model.eval()
        return {k: v.argmax(1) for k, v in model(mel, None, None)[1].items()}

    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in loops.validation(config.batch_size):
        guesses = predict(state["params"], state["rest"], batch["mel"])
        for name, guess in guesses.items():
            labels = batch["labels"][name]
            right = np.asarray(guess) == labels
            hits[name] += right[labels >= 0].tolist()
            if name == "degradation":
                for i, kind in enumerate(loops.degradations):
                    hits[f"recall of {kind}"] += right[labels == i].tolist()
    return {name: round(float(np.mean(h)), 4) for name, h in hits.items()}


def export(graphdef, state, config, mel_config, folder: Path, step: int) -> None:
    """Writes the encoder without its training heads."""
    model = nnx.merge(graphdef, state["params"], state["rest"])
    about = {
        "license": "MIT",
        "recipe": dataclasses.asdict(config) | {"data": [], "out": "", "start_from": ""},
        "step": step,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}",
        "jax": jax.__version__,
    }
    weights = flatten_state(nnx.state(model.encoder))
    name = "loopjax-nano"
    save_encoder(folder, HtsatConfig.nano(), mel_config, weights, encoder_id=name, about=about)


def main() -> None:
    """Trains, then writes the encoder folder `OUT/encoder`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    config = read_config(PretrainConfig, args.config, args.set)
    train(config)


if __name__ == "__main__":
    main()
