"""The command line: verbs and their options; the work is done by the joiners they call."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

from loopjax import __version__
from loopjax.errors import LoopjaxError

EXIT_CODES = """exit codes:
  0 done   2 usage or config   3 done, some inputs rejected and listed   4 too many rejected
  5 a model check failed   6 cannot write   130/143 interrupted after a clean save"""


COMPILING = {"demo", "embed", "fit", "score", "evaluate", "explain", "run"}  # they use jax


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.verb in COMPILING:
            from loopjax.parallel import enable_compilation_cache

            enable_compilation_cache()
        return args.handler(args) or 0
    except LoopjaxError as error:
        print(f"loopjax {args.verb}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print(f"loopjax {args.verb}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loopjax",
        description="Find what is normal and what is odd in large corpora of musical loops.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loopjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        _demo,
        _embed,
        _fit,
        _score,
        _evaluate,
        _explain,
        _report,
        _run,
        _convert,
        _encoders,
    ):
        add(verbs)
    return parser


def _verb(verbs, name: str, handler: Callable, summary: str, example: str):
    verb = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(handler=handler)
    return verb


def _demo(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import demo_command

        return demo_command(args.out, quick=args.quick)

    verb = _verb(
        verbs,
        "demo",
        handler,
        "run everything on the bundled loops with the bundled encoder, offline",
        "loopjax demo -o out/demo",
    )
    verb.add_argument("-o", "--out", default="out/demo", help="run folder (default: out/demo)")
    verb.add_argument("--quick", action="store_true", help="one seed, one encoder")


def _embed(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import embed_command
        from loopjax.config import EmbedConfig, from_dict

        given = {
            field.name: value
            for field in dataclasses.fields(EmbedConfig)
            if (value := getattr(args, field.name, None)) is not None and value is not False
        }
        config = from_dict(EmbedConfig, given, "command line")
        return embed_command(
            args.sources,
            args.out,
            config,
            restart=args.restart,
            coordinator=args.coordinator,
            processes=args.processes,
            process_index=args.process_index,
        )

    verb = _verb(
        verbs,
        "embed",
        handler,
        "audio files to Parquet embeddings; the same command again continues where it stopped",
        "loopjax embed loops/ more/one.wav -o out/emb --encoder loopjax-nano",
    )
    verb.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="audio file, folder, list of paths (.txt), tfds:NAME or bundled:demo",
    )
    verb.add_argument("-o", "--out", required=True, help="folder of the embedding store")
    verb.add_argument("--encoder", help="bundled name, known name or converted folder")
    verb.add_argument(
        "--precision",
        choices=("fp32", "bf16", "bf16-fused"),
        help="bf16-fused: attention as one kernel, for GPUs (default: fp32)",
    )
    verb.add_argument("--crops", help="long clips: deterministic (default) or seeded:K")
    verb.add_argument("--resample", choices=("auto", "host", "device"))
    verb.add_argument("--mono", choices=("mean", "left", "mid"))
    verb.add_argument("--batch-size", type=int, help="clips per step (default: by device)")
    verb.add_argument("--max-duration", type=float, dest="max_duration_s", metavar="SECONDS")
    verb.add_argument("--workers", type=int, help="decoding processes (default: by cores)")
    verb.add_argument(
        "--max-failures", type=float, metavar="SHARE", help="reject share that ends with code 4"
    )
    verb.add_argument("--strict", action="store_true", help="stop at the first rejected file")
    verb.add_argument("--accept-truncated", action="store_true", help="keep cut files, flagged")
    verb.add_argument("--sanitize", action="store_true", help="zero NaN/Inf samples, flagged")
    verb.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    verb.add_argument("--coordinator", metavar="HOST:PORT", help="several hosts; or auto")
    verb.add_argument("--processes", type=int, help="number of processes with --coordinator")
    verb.add_argument("--process-index", type=int, help="this process with --coordinator")


def _fit(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import fit_command

        return fit_command(
            args.embeddings,
            args.out,
            detector=args.detector,
            network=args.network,
            seeds=args.seeds,
            config_path=args.config,
            overrides=args.set,
        )

    verb = _verb(
        verbs,
        "fit",
        handler,
        "train one detector on embeddings",
        "loopjax fit out/emb -o out/residual --network residual",
    )
    verb.add_argument("embeddings", metavar="EMB", help="store folder, .parquet, .npy or .npz")
    verb.add_argument("-o", "--out", required=True, help="model folder")
    verb.add_argument(
        "--detector",
        default="deep-svdd",
        choices=("deep-svdd", "isolation-forest", "pca", "knn", "mahalanobis", "mean-cosine"),
    )
    verb.add_argument("--network", choices=("standard", "residual"), help="deep-svdd only")
    verb.add_argument("--seeds", metavar="A..B", help="several seeds trained together, e.g. 0..9")
    verb.add_argument("--config", help="take the detector of this experiment file")
    _add_set(verb, "params.hidden_dims=[512,256,128]")


def _score(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import score_command

        return score_command(
            args.model,
            args.sources,
            args.out,
            csv=args.csv,
            target_fpr=args.target_fpr,
            top=args.top,
        )

    verb = _verb(
        verbs,
        "score",
        handler,
        "score audio or embeddings with a trained detector; higher = more anomalous",
        "loopjax score out/residual new_loop.wav",
    )
    verb.add_argument("model", metavar="MODEL", help="model folder written by fit or run")
    verb.add_argument("sources", nargs="+", metavar="SRC|EMB", help="audio, or an embedding store")
    verb.add_argument("-o", "--out", help="scores.parquet to write")
    verb.add_argument("--csv", help="also write CSV here")
    verb.add_argument(
        "--target-fpr", type=float, help="flag by conformal p-value at this false-positive rate"
    )
    verb.add_argument("--top", type=int, default=20, help="rows printed (default 20)")


def _evaluate(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import evaluate_command

        return evaluate_command(
            args.target, args.out, overrides=args.set, quick=args.quick, seeds=args.seeds
        )

    verb = _verb(
        verbs,
        "evaluate",
        handler,
        "detectors side by side: thresholds, separation, AUROC where labels exist, tests, figures",
        "loopjax evaluate configs/bass392.yaml -o out/b392",
    )
    verb.add_argument("target", metavar="CONFIG|RUN", help="experiment file, or a run folder")
    verb.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    verb.add_argument("--quick", action="store_true", help="one seed, fewer strengths")
    verb.add_argument(
        "--seeds", metavar="A..B", help="the same seeds for every detector, e.g. 0..4"
    )
    _add_set(verb, "seeds=[0,1]")


def _explain(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import explain_command

        return explain_command(args.model, args.file, args.out, neighbors=args.embeddings)

    verb = _verb(
        verbs,
        "explain",
        handler,
        "why is this loop odd: where in time and pitch, and which normal loops are nearest",
        "loopjax explain out/residual loops/odd.wav -o out/why",
    )
    verb.add_argument("model", metavar="MODEL", help="model folder written by fit or run")
    verb.add_argument("file", metavar="FILE", help="one audio file")
    verb.add_argument("-o", "--out", required=True, help="folder for explanation.json and .svg")
    verb.add_argument("--embeddings", help="store to find nearest loops in (default: the model's)")


def _report(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import report_command

        return report_command(args.run, audio=args.audio, top=args.top)

    verb = _verb(
        verbs,
        "report",
        handler,
        "write the one-file HTML report of a run again",
        "loopjax report out/demo --audio link",
    )
    verb.add_argument("run", metavar="RUN", help="run folder")
    verb.add_argument("--audio", choices=("auto", "embed", "link", "none"))
    verb.add_argument("--top", type=int, help="loops listed with players")


def _run(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import run_command

        return run_command(args.config, args.out, overrides=args.set, restart=args.restart)

    verb = _verb(
        verbs,
        "run",
        handler,
        "embed, fit, score, evaluate and report from one file; a killed run continues",
        "loopjax run configs/demo.yaml -o out/r1 --set detectors.residual.params.epochs=50",
    )
    verb.add_argument("config", metavar="CONFIG")
    verb.add_argument("-o", "--out", help="run folder (default: out/NAME, the config's name)")
    verb.add_argument("--restart", action="store_true", help="discard what an earlier run wrote")
    _add_set(verb, "embed.encoder=loopjax-nano")


def _convert(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import convert_command

        return convert_command(args.checkpoint, args.out)

    verb = _verb(
        verbs,
        "convert",
        handler,
        "PyTorch or safetensors checkpoint to an Orbax encoder or head; every key accounted for",
        "loopjax convert 630k-audioset-fusion-best.pt -o weights/clap-fused",
    )
    verb.add_argument(
        "checkpoint", metavar="CKPT", help=".pt, .ckpt, .pth, .safetensors or HF folder"
    )
    verb.add_argument("-o", "--out", required=True, help="folder to write")


def _encoders(verbs) -> None:
    def handler(args) -> int:
        from loopjax.cli.commands import encoders_command

        return encoders_command(args.action, args.name)

    verb = _verb(
        verbs,
        "encoders",
        handler,
        "list the known encoders, fetch one, or check one",
        "loopjax encoders list; loopjax encoders pull clap-htsat-fused",
    )
    verb.add_argument("action", choices=("list", "pull", "verify"), nargs="?", default="list")
    verb.add_argument("name", nargs="?", help="encoder name, or a folder for verify")


def _add_set(verb, example: str) -> None:
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a setting, e.g. {example}",
    )
