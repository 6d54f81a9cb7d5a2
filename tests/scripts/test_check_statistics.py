"""The table of statistical promises, in its short form."""

from scripts.check_statistics import main
from scripts.promises.line import Line


def test_every_promise_of_the_short_form_is_kept(capsys):
    assert main(["--short"]) == 0
    assert "0 targets missed" in capsys.readouterr().out


def test_a_missed_target_is_seen():
    assert not Line("", "", 0.2, 0.0, 0.1).holds
    assert not Line("", "", float("nan"), 0.0, 0.1).holds
