import sys

import pytest

from loopjax.errors import UserError
from loopjax.report.extra import require_report_extra
from loopjax.report.page import write_report


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_one_line_that_names_it(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    for call in (require_report_extra, lambda: write_report(tmp_path)):
        with pytest.raises(UserError, match=rf"need {package}: pip install 'loopjax\[report\]'"):
            call()
