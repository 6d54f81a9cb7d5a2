"""What each verb of the command line does: call the joiners, print the result, return the code."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loopjax.bundled import folder
from loopjax.config import (
    DetectorConfig,
    EmbedConfig,
    ExperimentConfig,
    SplitConfig,
    from_dict,
    load_config,
)
from loopjax.errors import UserError
from loopjax.store.scores import Scores

DONE, SOME_REJECTED = 0, 3
PRINTED_TABLES = 3  # the rest is in evaluation.json and the report
QUICK = ("seeds=[0]", "evaluate.bootstrap=100", "compare_encoders=[]")


def demo_command(out: str, *, quick: bool) -> int:
    """Runs the bundled demo experiment and prints what it found."""
    config = load_config(folder("configs") / "demo.yaml", QUICK if quick else ())
    return _run(config, out)


def run_command(config: str, out: str | None, *, overrides: Sequence[str], restart: bool) -> int:
    """Runs an experiment file."""
    return _run(load_config(config, overrides), out, restart=restart)


def embed_command(
    sources: Sequence[str],
    out: str,
    config: EmbedConfig,
    *,
    restart: bool,
    coordinator: str | None,
    processes: int | None,
    process_index: int | None,
) -> int:
    """Embeds a corpus into a store."""
    from loopjax.embedding.corpus import embed_corpus
    from loopjax.encoders.load import load_encoder
    from loopjax.parallel import initialize

    initialize(coordinator, processes, process_index)
    encoder = load_encoder(config.encoder, config.precision)
    summary = embed_corpus(sources, encoder, Path(out), config, restart=restart)
    print(json.dumps(dataclasses.asdict(summary)))  # noqa: T201
    return SOME_REJECTED if summary.n_failed else DONE


def fit_command(
    embeddings_path: str,
    out: str,
    *,
    detector: str,
    network: str | None,
    seeds: str | None,
    config_path: str | None,
    overrides: Sequence[str],
) -> int:
    """Fits one detector, or one per seed, on an embedding store."""
    from loopjax.model import fit_models, split_rows
    from loopjax.store.read import read_embeddings

    numbers = _seed_list(seeds)
    config, split = _detector_config(detector, network, config_path, overrides)
    embeddings = read_embeddings(embeddings_path)
    train = split_rows(embeddings, split)
    path = str(Path(embeddings_path).absolute())
    with _epoch_progress() as on_epoch:
        models = fit_models(
            embeddings,
            train,
            config,
            numbers,
            embeddings_path=path,
            extra={"on_epoch": on_epoch},
        )
    for seed, model in zip(numbers, models, strict=True):
        folder = Path(out) if len(numbers) == 1 else Path(out) / f"seed-{seed}"
        model.save(folder)
        row = {
            "model": str(folder),
            "detector": config.kind,
            "seed": seed,
            "n_train": int(train.sum()),
            "n_held_out": int((~train).sum()),
            "threshold": model.detector.threshold_,
        }
        print(json.dumps(row))  # noqa: T201
    return DONE


def score_command(
    model_path: str,
    sources: Sequence[str],
    out: str | None,
    *,
    csv: str | None,
    target_fpr: float | None,
    top: int,
) -> int:
    """Scores a store of embeddings, or audio directly with the encoder that the model knows."""
    from loopjax.model import TrainedModel, score_embeddings
    from loopjax.store.foreign import SUFFIXES
    from loopjax.store.read import part_files, read_embeddings
    from loopjax.store.scores import write_csv, write_scores

    model = TrainedModel.load(model_path)
    first = Path(sources[0])
    is_store = first.is_dir() and (part_files(first) or part_files(first / "embeddings"))
    is_file = first.suffix in (".parquet", *SUFFIXES)
    if len(sources) == 1 and (is_store or is_file):
        embeddings = read_embeddings(first)
    else:
        embeddings = _embed_like(model, sources)
    scores = score_embeddings(model, embeddings, target_fpr)
    if out is not None:
        write_scores(scores, Path(out), csv=csv)
    elif csv is not None:
        write_csv(scores.table, Path(csv))
    print_ranking(scores, top)
    for failure in embeddings.failures.to_pylist():
        _say(f"rejected {failure['path']}: {failure['reason']} ({failure['message']})")
    return SOME_REJECTED if len(embeddings.failures) else DONE


def evaluate_command(
    target: str,
    out: str | None,
    *,
    overrides: Sequence[str],
    quick: bool = False,
    seeds: str | None = None,
) -> int:
    """Evaluates an experiment file (running it where needed), or a finished run again.

    Both `quick` and `seeds` also replace the seeds that single detectors ask for.
    """
    if Path(target).is_dir():
        from loopjax.experiment.run import evaluate_run

        print_evaluation(evaluate_run(Path(target), log=_say))
        return DONE
    config = load_config(target, overrides)
    changes: list[str] = [*QUICK] if quick else []
    if quick and config.evaluate.ladder != "none":
        changes.append("evaluate.ladder=quick")
    if seeds is not None:
        changes.append(f"seeds={_seed_list(seeds)}")
    if changes:
        own_seeds = (f"detectors.{d.name}.protocol_seeds={{}}" for d in config.detectors)
        config = load_config(target, [*overrides, *changes, *own_seeds])
    folder = _run_folder(config, out)
    if config.evaluate.protocols:
        from loopjax.experiment.paper import reproduce

        print_evaluation(reproduce(config, folder, log=_say))
        return DONE
    from loopjax.experiment.run import run

    result = run(config, folder, log=_say)
    print_evaluation(result.evaluation)
    return SOME_REJECTED if result.n_rejected else DONE


def explain_command(model_path: str, file: str, out: str, *, neighbors: str | None) -> int:
    """Explains the score of one loop."""
    from loopjax.encoders.load import load_encoder
    from loopjax.explanation import explain
    from loopjax.model import TrainedModel
    from loopjax.store.read import read_embeddings

    model = TrainedModel.load(model_path)
    if not Path(file).is_file():
        raise UserError(f"{file}: no such audio file")
    store = neighbors or model.embeddings_path
    known = read_embeddings(store) if store and Path(store).exists() else None
    encoder = load_encoder(_encoder_of(model))
    result = explain(model.detector, encoder, file, neighbors_from=known, out_dir=Path(out))
    print(json.dumps(result, indent=2))  # noqa: T201
    return DONE


def report_command(run: str, *, audio: str | None, top: int | None) -> int:
    """Writes the report of a run folder again."""
    from loopjax.experiment.record import recorded_config
    from loopjax.report.page import write_report

    given = {k: v for k, v in (("audio", audio), ("top", top)) if v is not None}
    config = dataclasses.replace(recorded_config(Path(run)).report, **given)
    print(write_report(Path(run), config=config))  # noqa: T201
    return DONE


def convert_command(checkpoint: str, out: str) -> int:
    """Converts a published checkpoint."""
    from loopjax.convert.checkpoint import convert

    print(convert(Path(checkpoint), Path(out)))  # noqa: T201
    return DONE


def encoders_command(action: str, name: str | None) -> int:
    """Lists, fetches or verifies encoders."""
    from loopjax.encoders import load as zoo

    if action == "list":
        rows = zoo.encoders()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for key in rows[0]:
            table.add_column(key, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str("" if v is None else v)) for v in row.values()))
        _stdout().print(table)
        return DONE
    if name is None:
        raise UserError(f"encoders {action} needs a name; see `loopjax encoders list`")
    print(zoo.pull(name) if action == "pull" else zoo.verify(name))  # noqa: T201
    return DONE


def print_ranking(scores: Scores, top: int) -> None:
    """Prints the most anomalous loops, most anomalous first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    for name in ("score", "percentile", "p-value"):
        table.add_column(name, justify="right")
    table.add_column("anomaly")
    table.add_column("loop", overflow="fold")
    for row in scores.table.slice(0, top).to_pylist():
        p_value = "" if row["p_value"] is None else f"{row['p_value']:.3g}"
        table.add_row(
            str(row["rank"]),
            f"{row['score']:.6g}",
            f"{row['percentile']:.1f}",
            p_value,
            "yes" if row["is_anomaly"] else "",
            escape(row["path"]),
        )
    _stdout().print(table)
    hidden = len(scores.table) - top
    if hidden > 0:
        _say(f"{hidden} more loops are less anomalous")


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """Prints the first tables of an evaluation."""
    from loopjax.report.tables import prepare_table

    for part in map(prepare_table, evaluation["tables"][:PRINTED_TABLES]):
        table = Table(title=part["title"], box=None, pad_edge=False, header_style="bold")
        table.title_justify = "left"
        for column in part["columns"]:
            table.add_column(column["label"], justify="right" if column["numeric"] else "left")
        for row in part["rows"]:
            cells = (row[column["key"]] for column in part["columns"])
            table.add_row(*(escape("" if cell is None else str(cell)) for cell in cells))
        _stdout().print(table)


def _run_folder(config: ExperimentConfig, out: str | None) -> Path:
    return Path("out") / config.name if out is None else Path(out)


def _run(config: ExperimentConfig, out: str | None, restart: bool = False) -> int:
    from loopjax.experiment.run import run

    result = run(config, _run_folder(config, out), restart=restart, log=_say)
    print_ranking(result.scores, min(config.report.top, 20))
    print_evaluation(result.evaluation)
    return SOME_REJECTED if result.n_rejected else DONE


def _detector_config(
    kind: str, network: str | None, config_path: str | None, overrides: Sequence[str]
) -> tuple[DetectorConfig, SplitConfig]:
    if config_path is not None:
        experiment = load_config(config_path, overrides)
        if not experiment.detectors:
            raise UserError(f"{config_path} lists no detectors")
        chosen = [
            d
            for d in experiment.detectors
            if d.kind == kind and (network is None or d.params.get("network") == network)
        ]
        if not chosen:
            raise UserError(f"{config_path} has no detector of kind {kind} and network {network}")
        return chosen[0], experiment.split
    base: dict[str, Any] = {"name": network or kind, "kind": kind, "params": {}}
    if network is not None:
        if kind != "deep-svdd":
            raise UserError(f"--network is for --detector deep-svdd, not {kind}")
        base["params"]["network"] = network
    wrapper = {"name": "fit", "detectors": [base]}
    prefixed = [f"detectors.0.{item}" if item.startswith("params.") else item for item in overrides]
    experiment = from_dict(ExperimentConfig, wrapper, "command line", prefixed)
    return experiment.detectors[0], experiment.split


def _embed_like(model: Any, sources: Sequence[str]) -> Any:
    """Embeds audio in memory exactly as the model's training embeddings were made."""
    from loopjax.embedding.corpus import embed, options_from_metadata
    from loopjax.encoders.load import load_encoder

    options = options_from_metadata(model.embedding)
    encoder = load_encoder(_encoder_of(model), options.precision)
    return embed(sources, encoder, config=options)


def _encoder_of(model: Any) -> str:
    name = model.embedding.get("encoder_path") or model.embedding.get("encoder")
    if not name:
        raise UserError(
            "the model was trained on embeddings of unknown origin, so audio cannot be embedded "
            "for it; score an embedding file of the same origin instead"
        )
    return name


def _seed_list(text: str | None) -> list[int]:
    if text is None:
        return [0]
    first, dots, last = text.partition("..")
    try:
        return list(range(int(first), int(last) + 1)) if dots else [int(s) for s in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: write 0..9 or 0,3,7") from None


def _epoch_progress() -> Any:
    import contextlib
    from collections.abc import Iterator

    @contextlib.contextmanager
    def bar() -> Iterator[Any]:
        with Console(stderr=True).status("fitting") as status:

            def on_epoch(stage: str, epoch: int, metrics: dict[str, float]) -> None:
                values = "  ".join(f"{k} {float(v):.4g}" for k, v in metrics.items())
                status.update(f"{stage} epoch {epoch}  {values}")

            yield on_epoch

    return bar()


def _stdout() -> Console:
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
