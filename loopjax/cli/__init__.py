"""The command line: `loopjax VERB ...`; every verb is one module with its options and action."""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from loopjax import __version__
from loopjax.cli import (
    apply,
    config,
    convert,
    dedup,
    demo,
    doctor,
    embed,
    encoders,
    evaluate,
    explain,
    finetune,
    fit,
    index,
    mislabelled,
    pack,
    pull,
    push,
    report,
    rerank,
    run,
    score,
    serve,
    similar,
    store,
    tag,
)
from loopjax.cli.completion import completion_verb
from loopjax.cli.terminal import prepare_streams, say
from loopjax.cli.verb import Verb
from loopjax.errors import InterruptedRunError, LoopjaxError, UserError, WriteError
from loopjax.experiment.interrupt import ignore_signals, stoppable
from loopjax.io import require_name
from loopjax.io.hub_names import is_hub_name
from loopjax.io.remote import is_address

EXIT_CODES = """exit codes:
  0 done   2 usage or config   3 done, some inputs rejected and listed   4 too many rejected
  5 a model check failed   6 cannot write   130/143 interrupted after a clean save"""

# Of files that are written in passing, such as logs; all else is a WriteError already.
CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    errno.ENAMETOOLONG,
}

_MODULES = (
    *(demo, run, pack, embed, finetune, fit, score, explain, evaluate, report, serve),
    *(similar, index, tag, dedup, mislabelled, rerank, apply),
    *(store, config, convert, encoders, pull, push, doctor),
)
VERBS = {module.VERB.name: module.VERB for module in _MODULES}
VERBS["completion"] = completion_verb(lambda: _overview(with_options=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        _overview().parse_args(arguments)  # helps, or complains, and exits
    verb = VERBS[arguments[0]]
    args = parser_of(verb).parse_intermixed_args(arguments[1:])
    prepare_streams()
    try:
        if verb.compiles:
            from loopjax.parallel import enable_compilation_cache

            enable_compilation_cache()
        out = getattr(args, "out", None)
        if out is not None and is_hub_name(out):
            raise UserError(f"{out}: write into a folder, and send that with `loopjax push`")
        if out is not None and not (verb.writes_to_addresses and is_address(out)):
            require_name(Path(out))  # told now, not after hours of work
        with stoppable():
            return verb.act(args)
    except InterruptedRunError as error:
        say(f"loopjax {verb.name}: {error}")
        if argv is None:  # further signals cannot change how this process ends
            ignore_signals()
        return error.exit_code
    except LoopjaxError as error:
        say(f"loopjax {verb.name}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"loopjax {verb.name}: interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except MemoryError:
        say(f"loopjax {verb.name}: out of memory")
        return UserError.exit_code
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        place = error.filename or "a file"
        say(f"loopjax {verb.name}: cannot write {place}: {error.strerror}")
        return WriteError.exit_code


def _overview(with_options: bool = False) -> argparse.ArgumentParser:
    """The parser of `loopjax --help` and of verbs that do not exist.

    Args:
        with_options: with those of all verbs, which takes longer.
    """
    parser = argparse.ArgumentParser(
        prog="loopjax",
        description="Find what is normal and what is anomalous in large corpora of musical loops.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loopjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS.values():
        inner = verbs.add_parser(verb.name, help=verb.summary)
        if with_options:
            verb.add_options(inner)
    return parser


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The parser of one verb; only the chosen verb's is built, so that help comes at once."""
    parser = argparse.ArgumentParser(
        prog=f"loopjax {verb.name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_options(parser)
    return parser
