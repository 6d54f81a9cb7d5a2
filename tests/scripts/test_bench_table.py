import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import measure
import suite
import table

OTHERS = ("gpu_check", "library", "packed", "scale", "simulate")  # not of `make bench`
ROW = {
    "bench": "encoder",
    "row": "tiny",
    "ours": 8.2,
    "unit": "clips/s",
    "peer": 5.9,
    "peer_name": "transformers",
    "ratio": 1.39,
    "target": ">= 1.3x",
    "command": "python scripts/bench/encoder.py",
    "platform": "cpu",
    "device": "2 cores",
    "load": 1.96,
    "versions": {"jax": "0.10.2"},
    "date": "2026-01-01",
}


def test_page_says_what_the_results_say():
    page = table.PAGE.read_text()
    expected = table.with_section(page, table.section(table.read_results()))
    assert expected == page, "run scripts/bench/table.py"


def test_every_kept_result_can_be_repeated_by_the_suite():
    assert {row["bench"] for row in table.read_results()} <= {*suite.COMMANDS, *OTHERS}


@pytest.mark.parametrize("name", suite.COMMANDS)
def test_every_script_shows_a_command_to_repeat_it(name):
    text = (table.FOLDER / f"{name}.py").read_text()
    assert f"    python scripts/bench/{name}.py" in text
    assert "arguments(__doc__)" in text


def test_section_shows_command_figures_and_circumstances():
    alone = ROW | {"row": "tiny alone", "peer": None, "peer_name": None, "ratio": None}
    text = table.section([ROW, alone])
    assert "`python scripts/bench/encoder.py`: 2 cores, load 2.0, 2026-01-01, jax 0.10.2" in text
    assert "| tiny | 8.2 clips/s | 5.9 clips/s (transformers) | **1.39** | >= 1.3x |" in text
    assert "| tiny alone | 8.2 clips/s |  |  | >= 1.3x |" in text


def test_section_says_what_an_accelerator_did_not_run_where_one_ran():
    assert "Not measured" not in table.section([ROW])
    assert "Not measured" in table.section([ROW, ROW | {"platform": "gpu"}])


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        table.with_section("# loopjax", "text")


def test_contenders_take_turns_and_the_first_call_is_kept_apart():
    calls = []
    times = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert len(times["a"].seconds) == 2


def test_new_results_replace_those_of_the_same_script_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    suite.keep("startup", [json.dumps(ROW | {"bench": "startup"}) + "\n"])
    suite.keep("encoder", [json.dumps(ROW) + "\n"])
    suite.keep("encoder", [json.dumps(ROW | {"ours": 9.0}) + "\n"])
    kept = [json.loads(line) for line in (tmp_path / "cpu.jsonl").read_text().splitlines()]
    assert [(row["bench"], row["ours"]) for row in kept] == [("encoder", 9.0), ("startup", 8.2)]
    suite.keep("encoder", [json.dumps(ROW | {"platform": "gpu", "ours": 9e3}) + "\n"])
    assert len((tmp_path / "cpu.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "gpu.jsonl").read_text())["ours"] == 9e3


def test_the_line_says_who_is_ahead(capsys):
    measure.emit("x", "y", ours=2.0, peer=4.0, unit="s", higher_is_better=False)
    line = json.loads(capsys.readouterr().out)
    assert line["ratio"] == 2.0
    assert {"command", "device", "versions", "date"} <= set(line)
