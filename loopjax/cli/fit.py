"""`loopjax fit`: one detector trained on embeddings."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loopjax.cli.options import add_log_option, add_set_option
from loopjax.cli.seeds import parse_seeds
from loopjax.cli.terminal import say
from loopjax.cli.verb import DONE, Verb
from loopjax.config import DetectorConfig, SplitConfig
from loopjax.detectors import DEFAULT_KIND, detector_kinds
from loopjax.errors import UserError
from loopjax.training.sinks import (
    Epoch,
    ProgressLines,
    Sink,
    describe,
    open_sinks,
    reporting,
    require_sinks,
)

# Networks of Deep SVDD; the last has so little in common with the others that it is a kind itself.
_KIND_OF_NETWORK = {
    "standard": "deep-svdd",
    "residual": "deep-svdd",
    "spheres": "sphere-svdd",
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", metavar="EMB", help="store folder, .parquet, .npy or .npz")
    parser.add_argument("-o", "--out", required=True, help="model folder")
    parser.add_argument(
        "--detector",
        choices=detector_kinds(),
        help=f"the method (default: {DEFAULT_KIND})",
    )
    parser.add_argument(
        "--network",
        choices=tuple(_KIND_OF_NETWORK),
        help="of --detector deep-svdd, which it implies; spheres implies sphere-svdd",
    )
    parser.add_argument("--seeds", metavar="A..B", help="several seeds trained together, e.g. 0..9")
    parser.add_argument(
        "--max-rows",
        type=_count,
        metavar="N",
        help="fit on at most so many loops, drawn from all (default 1000000)",
    )
    parser.add_argument("--config", help="take the detector of this experiment file")
    parser.add_argument(
        "--marks", metavar="FILE", help="marks, .csv or .parquet: rejected loops do not train"
    )
    parser.add_argument(
        "--update",
        metavar="MODEL",
        help="this model with the loops of EMB learned too (pca, knn, local-knn, mahalanobis, "
        "mean-cosine); takes no other option than -o",
    )
    add_log_option(parser)
    add_set_option(parser, "params.n_neighbors=3, or 'params.hidden_dims=[512,256,128]'")


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return int(text)


def _act(args: argparse.Namespace) -> int:
    return _fit(args) if args.update is None else _update(args)


def _update(args: argparse.Namespace) -> int:
    from loopjax.experiment.fit import update_model
    from loopjax.model import load_model

    names = ("detector", "network", "seeds", "max_rows", "config", "marks", "log", "set")
    for name in names:
        if getattr(args, name):
            raise UserError(
                f"--{name.replace('_', '-')} has no meaning with --update, which learns as "
                f"{args.update} did; to learn otherwise, fit on all loops"
            )
    model = load_model(args.update)
    updated = update_model(model, args.embeddings)
    updated.save(Path(args.out))
    detector = updated.detector
    row = {
        "model": args.out,
        "detector": detector.kind,
        "n_learned": detector.n_samples_seen_ - model.detector.n_samples_seen_,
        "n_train": detector.n_samples_seen_,
        "threshold": detector.threshold_,
    }
    print(json.dumps(row))  # noqa: T201
    return DONE


def _fit(args: argparse.Namespace) -> int:
    import numpy as np

    from loopjax.experiment.fit import fit_models
    from loopjax.experiment.splits import split_rows
    from loopjax.io.remote import place_of
    from loopjax.library.marks import KEEP, REJECT, marks_of_rows, read_marks
    from loopjax.store.stream import open_embeddings

    numbers = parse_seeds(args.seeds)
    config, split = _detector_config(args.detector, args.network, args.config, args.set)
    if args.max_rows is not None:
        split = dataclasses.replace(split, max_rows=args.max_rows)
    embeddings = open_embeddings(args.embeddings)
    labels = None
    if args.marks is not None:
        table = embeddings.columns(["id", "sha256"])
        words = marks_of_rows(read_marks(args.marks), table)
        labels = np.where(words == REJECT, 1, np.where(words == KEEP, 0, -1))
        split = dataclasses.replace(split, train_on="normal")
    rows = split_rows(embeddings, split, labels)
    if len(embeddings) > split.max_rows:
        say(f"fitting on {split.max_rows} of {len(embeddings)} loops, drawn with seed {split.seed}")
    path = str(place_of(args.embeddings).absolute())
    logs = Path(f"{args.out}.log")
    require_sinks(args.log)
    say(f"fitting {config.name} on {int(rows.train.sum())} loops")
    with contextlib.ExitStack() as stack:
        progress = _StatusLine() if sys.stderr.isatty() else ProgressLines(say)
        stack.callback(progress.close)
        sinks: list[Sink] = [progress, *stack.enter_context(open_sinks(args.log, logs))]
        models = fit_models(
            embeddings,
            rows.train,
            config,
            numbers,
            folds=rows.folds,
            embeddings_path=path,
            extra={"on_epoch": reporting(config.name, numbers, sinks)},
        )
    for seed, model in zip(numbers, models, strict=True):
        folder = Path(args.out) if len(numbers) == 1 else Path(args.out) / f"seed-{seed}"
        model.save(folder)
        row = {
            "model": str(folder),
            "detector": config.kind,
            "seed": seed,
            "n_rows": len(embeddings),
            "n_train": int(rows.train.sum()),
            "n_held_out": int(rows.held_out.sum()),
            "n_alike": rows.n_alike,
            "n_moved": rows.n_moved,
            "threshold": model.detector.threshold_,
        }
        print(json.dumps(row))  # noqa: T201
    return DONE


def _detector_config(
    detector: str | None, network: str | None, config_path: str | None, overrides: Sequence[str]
) -> tuple[DetectorConfig, SplitConfig]:
    from loopjax.experiment.load import config_from_dict, load_config

    kind = DEFAULT_KIND if detector is None else detector
    params: dict[str, object] = {}
    if network is not None:
        kind = _KIND_OF_NETWORK[network]
        if detector not in (None, kind):
            raise UserError(f"--network {network} is for --detector {kind}, not {detector}")
        if kind == "deep-svdd":
            params = {"network": network}
    if config_path is not None:
        experiment = load_config(config_path, overrides)
        chosen = [
            d for d in experiment.detectors if d.kind == kind and d.params.items() >= params.items()
        ]
        if not chosen:
            words = kind if network is None else f"{kind} and network {network}"
            raise UserError(f"{config_path} has no detector of kind {words}")
        return chosen[0], experiment.split
    wrapper = {
        "name": "fit",
        "detectors": [{"name": network or kind, "kind": kind, "params": params}],
    }
    prefixed = [f"detectors.0.{item}" if item.startswith("params.") else item for item in overrides]
    experiment = config_from_dict(wrapper, "command line", prefixed)
    return experiment.detectors[0], experiment.split


class _StatusLine:
    """One line on a terminal, redrawn with every epoch."""

    def __init__(self):
        from rich.console import Console

        self._status = Console(stderr=True).status("fitting")
        self._status.start()

    def write(self, epoch: Epoch) -> None:
        from rich.text import Text

        self._status.update(Text(describe(epoch)))

    def close(self) -> None:
        self._status.stop()


VERB = Verb(
    name="fit",
    summary="train one detector on embeddings",
    example="loopjax fit out/emb -o out/residual --network residual",
    add_options=_add_options,
    act=_act,
    compiles=True,
)
