"""JAX in a forked process waits for threads that only its parent has, and hangs: told instead."""

import os

from loopjax.errors import UserError

_computed_in: set[int] = set()  # the process that computes, and after a fork its parents


def refuse_after_fork() -> None:
    """To be called before JAX computes anything.

    Raises:
        UserError: this process was forked from one that had computed already.
    """
    _computed_in.add(os.getpid())
    if len(_computed_in) > 1:
        raise UserError(
            "this process was forked from one that has used JAX, where JAX would hang: start "
            'processes with multiprocessing.get_context("spawn"), or first use loopjax in the child'
        )
