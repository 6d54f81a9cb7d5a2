"""Scores as Parquet and CSV."""

import csv

import pyarrow as pa
import pytest

from loopjax.errors import UserError
from loopjax.store.parquet import write_parquet
from loopjax.store.scores import Scores, read_scores, write_csv, write_score_tables, write_scores


@pytest.fixture
def scores():
    table = pa.table(
        {
            "id": ["a", "b"],
            "path": ['say "hi",\nfolks.wav', "<b>;=1+1.wav"],
            "score": [0.5, 1.5],
            "is_anomaly": [False, True],
            "flags": [["dc", "silence"], []],
            "path_bytes": [b"\xff", b"b"],
        }
    )
    return Scores(table, {"model": "m", "score_convention": "higher_is_anomalous"})


def test_scores_round_trip(scores, tmp_path):
    write_scores(scores, tmp_path / "out" / "scores.parquet", csv=tmp_path / "scores.csv")
    for place in (tmp_path / "out" / "scores.parquet", tmp_path / "out"):
        back = read_scores(place)
        assert back.table.equals(scores.table)
        assert back.metadata == scores.metadata
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == scores.table["path"].to_pylist()
    assert [row["flags"] for row in rows] == ["dc;silence", ""]
    assert "path_bytes" not in rows[0]


def test_score_mistakes(scores, tmp_path):
    with pytest.raises(UserError, match="loopjax score"):
        read_scores(tmp_path / "none.parquet")
    write_parquet(scores.table.drop_columns(["score"]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column 'score'"):
        read_scores(tmp_path / "x.parquet")
    raw = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_scores(tmp_path / "x.parquet")


def test_a_folder_without_some_of_its_parts_is_refused(scores, tmp_path):
    tables = [scores.table, scores.table.slice(0, 1)]
    write_score_tables(tables, 2, tmp_path / "scores", scores.metadata)
    assert read_scores(tmp_path / "scores").table.equals(pa.concat_tables(tables))
    (tmp_path / "scores" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 parts"):
        read_scores(tmp_path / "scores")
    write_scores(scores, tmp_path / "scores")
    assert read_scores(tmp_path / "scores").table.equals(scores.table)
    (tmp_path / "scores" / "mine.txt").touch()
    with pytest.raises(UserError, match="other things"):
        write_scores(scores, tmp_path / "scores")


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    texts = ["=1+1.wav", "+a", "-a", "@a", "\ta", "a=1", ""]
    table = pa.table(
        {"path": texts, "group": texts[::-1], "score": [-1.5] * 7, "flags": [["=x"]] * 7}
    )
    write_csv(table, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    safe = ["'=1+1.wav", "'+a", "'-a", "'@a", "'\ta", "a=1", ""]
    assert [row["path"] for row in rows] == safe
    assert [row["group"] for row in rows] == safe[::-1]
    assert {(row["score"], row["flags"]) for row in rows} == {("-1.5", "'=x")}
