"""`loopjax doctor`: what this machine offers, and what to mend."""

import argparse

from loopjax.cli.terminal import printable
from loopjax.cli.verb import DONE, Verb


def _add_options(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing to choose


def _act(args: argparse.Namespace) -> int:
    from loopjax.doctor import diagnose

    n_to_mend = 0
    for finding in diagnose():
        print(f"{finding.topic:10s} {printable(finding.text)}", flush=True)  # noqa: T201
        if finding.advice:
            n_to_mend += 1
            print(f"{'':10s} -> {printable(finding.advice)}")  # noqa: T201
    print(f"{n_to_mend} to mend" if n_to_mend else "all is well")  # noqa: T201
    return DONE


VERB = Verb(
    name="doctor",
    summary="say what this machine offers: devices, codecs, extras, cache, limits",
    example="loopjax doctor",
    add_options=_add_options,
    act=_act,
)
