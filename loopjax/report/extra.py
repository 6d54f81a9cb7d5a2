"""Whether what reports and figures are drawn with is installed."""

from loopjax.errors import UserError


def require_report_extra() -> None:
    """Refuses to begin what the extra [report] is needed for.

    Raises:
        UserError: names the missing package and the command that installs it.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"reports and figures need {error.name}: pip install 'loopjax[report]'"
        ) from None
