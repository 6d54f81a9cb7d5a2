"""`loopjax completion`: verbs and options at the touch of the tab key."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from loopjax.cli.verb import DONE, Verb

_SHELLS = ("bash", "zsh", "fish")
_INSTALL = """for this session and all to come:
  bash: mkdir -p ~/.local/share/bash-completion/completions
        loopjax completion bash > ~/.local/share/bash-completion/completions/loopjax
  zsh:  loopjax completion zsh > ~/.zsh/_loopjax        (a folder of $fpath)
  fish: loopjax completion fish > ~/.config/fish/completions/loopjax.fish
in bash for this session alone:
  source <(loopjax completion bash)"""


def completion_verb(whole_parser: Callable[[], argparse.ArgumentParser]) -> Verb:
    """The verb that prints what a shell needs to complete all others."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=_SHELLS, help="the shell that will read it")
        parser.epilog = f"{parser.epilog}\n\n{_INSTALL}"

    def act(args: argparse.Namespace) -> int:
        import shtab

        parser = whole_parser()
        _complete_files(parser, shtab.FILE)
        print(shtab.complete(parser, args.shell))  # noqa: T201
        return DONE

    return Verb(
        name="completion",
        summary="print what bash, zsh or fish needs to complete verbs and options",
        example="source <(loopjax completion bash)",
        add_options=add_options,
        act=act,
    )


def _complete_files(
    parser: argparse.ArgumentParser, files: Mapping[str, str | dict[str, Any] | None]
) -> None:
    """Where no choices are known, a value may be a file."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, files)
        elif action.nargs != 0 and action.choices is None:
            action.complete = files  # pyright: ignore[reportAttributeAccessIssue]
