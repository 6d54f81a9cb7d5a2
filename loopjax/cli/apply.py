"""`loopjax apply`: carries out the marks of a report or of `dedup`."""

import argparse

from loopjax.cli.verb import DONE, SOME_REJECTED, Verb
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("marks", nargs="?", metavar="MARKS", help="file of marks, .csv or .parquet")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--move", metavar="DIR", help="move the marked files into this folder")
    what.add_argument("--copy", metavar="DIR", help="copy them")
    what.add_argument("--list", action="store_true", help="print their paths, one a line")
    what.add_argument("--undo", metavar="DIR", help="move all that was moved there back")
    parser.add_argument(
        "--mark", choices=("reject", "keep"), default="reject", help="which (default: reject)"
    )
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="store that knows where files lie now that were moved since they were marked",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it; without, only print what would be done"
    )


def _act(args: argparse.Namespace) -> int:
    from loopjax.cli.terminal import printable, say
    from loopjax.library.apply import carry_out, plan, undo_plan
    from loopjax.library.marks import count_marks, found_again, read_marks

    if (args.marks is None) != (args.undo is not None):
        raise UserError("give a file of marks, or --undo and the folder")
    kind = "copy" if args.copy else "move"
    out = args.copy or args.move or args.undo or "."
    if args.undo:
        steps = undo_plan(args.undo)
    else:
        marks = read_marks(args.marks)
        if args.store is not None:
            marks = found_again(marks, args.store)
        say(f"{args.marks}: {count_marks(marks)}")
        if args.list:
            for mark in marks:
                if mark.mark == args.mark:
                    print(printable(mark.path))  # noqa: T201
            return DONE
        steps = plan(marks, args.mark, out, kind)
    for step in steps:
        print(printable(f"{step.state:8} {step.source} -> {step.target}"))  # noqa: T201
    n_ready = sum(step.state == "ready" for step in steps)
    n_refused = sum(step.state in ("missing", "changed") for step in steps)
    if args.yes:
        done = carry_out(steps, out, kind)
        say(f"{done} files {'copied' if kind == 'copy' else 'moved'}")
    else:
        say(f"{n_ready} files would be {'copied' if kind == 'copy' else 'moved'}: add --yes")
    if n_refused:
        say(f"{n_refused} files are missing, or hold something else than what was marked")
    return SOME_REJECTED if n_refused else DONE


VERB = Verb(
    name="apply",
    summary="move, copy or list the loops that were marked; never deletes or overwrites",
    example="loopjax apply marks.csv --move rejected/ --yes; loopjax apply --undo rejected/ --yes",
    add_options=_add_options,
    act=_act,
)
