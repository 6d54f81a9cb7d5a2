"""Whether what reports and figures are drawn with is installed."""

import importlib.util

from loopjax.errors import UserError


def require_report_extra() -> None:
    """Refuses to begin what the extra [report] is needed for.

    Raises:
        UserError: names the missing package and the command that installs it.
    """
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"reports and figures need {package}: pip install 'loopjax[report]'")
