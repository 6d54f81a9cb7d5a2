"""`loopjax config`: what an experiment file may say, and what it says with all defaults."""

import argparse
import json

from loopjax.cli.options import add_set_option
from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb
from loopjax.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "schema"),
        help="show: the resolved file; schema: JSON Schema, for editors that complete YAML",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="for show: a file, or the name of a recipe"
    )
    add_set_option(parser, "split.seed=1")


def _act(args: argparse.Namespace) -> int:
    from loopjax.experiment.load import load_config, schema

    if args.action == "schema":
        if args.config or args.set:
            raise UserError("config schema takes no file and no --set: all files have one schema")
        print(json.dumps(schema(), indent=2))  # noqa: T201
        return DONE
    if args.config is None:
        raise UserError("config show needs a file or the name of a recipe")
    import yaml

    from loopjax.config import to_dict

    resolved = to_dict(load_config(args.config, args.set))
    for line in yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).splitlines():
        print(printable(line))  # noqa: T201
    return DONE


VERB = Verb(
    name="config",
    summary="print an experiment file with all defaults, or the JSON Schema of such files",
    example="loopjax config show demo --set split.seed=1",
    add_options=_add_options,
    act=_act,
)
