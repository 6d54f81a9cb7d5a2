"""Text from files cannot steer the terminal that shows it."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from loopjax.cli import main
from loopjax.cli.printing import print_evaluation, print_ranking
from loopjax.cli.terminal import prepare_streams, printable
from loopjax.evaluation.tables import Evaluation, Table

HOSTILE = "a\x1b[2J\x9b1m\u202egpj\u2066\x07\n\r\tb\u2028\x7f\ud800[bold]"
SHOWN = r"a\x1b[2J\x9b1m\u202egpj\u2066\x07\n\r\tb\u2028\x7f\ud800[bold]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("Bässe/é 日本 🥁 [1].wav", "Bässe/é 日本 🥁 [1].wav"),
        ("👩‍🎤", "👩‍🎤"),
        ("\u200e\u061c\ufeff\U000e0001", r"\u200e\u061c\ufeff\U000e0001"),
        ("back\\slash", "back\\slash"),
        ("", ""),
    ],
)
def test_what_is_no_letter_is_written_out(text, shown):
    assert printable(text) == shown


def test_tables_messages_warnings_and_errors_all_escape(capsys, tmp_path):
    columns = {"rank": [1], "score": [1.0], "percentile": [9.0], "p_value": [0.5]}
    columns |= {"is_anomaly": [True], "path": [HOSTILE.replace("\ud800", "")]}
    print_ranking(pa.table(columns), 5, 1)
    table = Table(HOSTILE, "", ({HOSTILE: HOSTILE, "mean": np.float64(1.0)},))
    print_evaluation(Evaluation((table,)))
    prepare_streams()
    logging.getLogger("loopjax.store").warning("set aside %s", HOSTILE.replace("\ud800", ""))
    assert main(["report", str(tmp_path / "x\x1b[2J\u202e")]) == 2
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not set("\x1b\x9b\u202e\u2066\x07\r\x7f") & set(text)
        assert r"\x1b[2J" in text
    assert "warning: set aside a" in shown.err
    assert "[bold]" in shown.out
