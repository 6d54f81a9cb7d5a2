"""One promise: what was measured, and between what it has to lie."""

from collections.abc import Callable
from dataclasses import dataclass

from loopjax.errors import UserError


@dataclass(frozen=True)
class Line:
    """One measured number.

    Attributes:
        item: what it shows.
        before: measured earlier, as text; "" where nothing was.
        found: measured now.
        low: least that is right.
        high: most that is right.
    """

    item: str
    before: str
    found: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the target is met; NaN never does."""
        return bool(self.low <= self.found <= self.high)


def refused(
    call: Callable[[], object], error: type[Exception] = UserError, saying: str = ""
) -> int:
    """1 if a call raises `error` with a message that contains `saying`, else 0."""
    try:
        call()
    except error as raised:
        return int(saying in str(raised))
    return 0
