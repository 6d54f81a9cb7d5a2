"""Label files, tables, configs and lists as other programs and people write them.

The folder `cases` beside this file holds the inputs; where the shared data folder is present, its
copies are read as well.
"""

import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loopjax.audio.loop import Loop
from loopjax.audio.sources.files import scan
from loopjax.cli import main
from loopjax.errors import UserError
from loopjax.experiment.labels import join_labels, read_labels
from loopjax.experiment.load import load_config
from loopjax.experiment.run import check_complete
from loopjax.store.read import read_embeddings

SHARED = Path(__file__).parents[2] / "shared" / "data" / "cases"
FOLDERS = [Path(__file__).parent / "cases", *([SHARED] if SHARED.exists() else [])]

pytestmark = pytest.mark.cases


@pytest.fixture(params=FOLDERS, ids=["copies", "shared"][: len(FOLDERS)])
def cases(request):
    return request.param


def says_nothing(line: str) -> None:
    pass


ALL = {0: 40, 1: 20}
LABELS = {
    "": ALL,
    "_backslash": ALL,
    "_bom": ALL,
    "_bool": ALL,
    "_float": ALL,
    "_latin1": ALL,
    "_reversed": ALL,
    "_semicolon": ALL,
    "_utf16": ALL,
    "_blank": {0: 39, 1: 20, -1: 1},
    "2": {0: 40, 1: 5},
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_belong_to_the_loops_they_name(cases, kind):
    labels = read_labels(cases / "labels" / f"labels{kind}.csv", says_nothing)
    assert Counter(row.value for row in labels.rows) == LABELS[kind]
    if kind in ("2", "_latin1"):  # of other folders
        return
    paths = [f"corpus/bass/loop_{k:02d}.wav" for k in range(40)]
    paths += [f"corpus/odd/loop_{k:02d}.wav" for k in range(20)]
    joined = join_labels(labels, paths)
    assert not joined.unmatched
    known = joined.values >= 0
    assert known.sum() == (59 if kind == "_blank" else 60)
    odd = np.array(["odd" in path for path in paths])
    np.testing.assert_array_equal(joined.values[known], odd[known])


def test_a_label_of_no_meaning_is_named_with_its_line(cases):
    with pytest.raises(UserError, match=r"labels_two\.csv:42: is_anomaly is '2'"):
        read_labels(cases / "labels" / "labels_two.csv", says_nothing)


TABLES = [
    "categorical",
    "datasets",
    "filename_col",
    "fsl_f8",
    "int_id",
    "large_list",
    "null_path",
    "pandas",
    "pandas_f2",
    "pandas_index",
    "polars_array",
    "polars_list",
    "wide",
    "with_group",
]
REFUSED_TABLES = {
    "nested": r"'embedding' is list<element: list<element: double>>, expected lists of numbers",
    "null_emb": "row 3 has no value in column 'embedding'",
    "null_inside": "row 5 has a null in column 'embedding'",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read(cases, name):
    found = read_embeddings(cases / "parquet" / f"{name}.parquet").matrix
    assert found.shape == (60, 8)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == 60


@pytest.mark.parametrize("name", REFUSED_TABLES)
def test_tables_are_refused_by_the_name_of_the_column(cases, name):
    with pytest.raises(UserError, match=REFUSED_TABLES[name]):
        read_embeddings(cases / "parquet" / f"{name}.parquet")


CONFIGS = {
    "date_name": {},
    "ncomp_str": {"n_components": 0.9},
    "sci_contam": {"contamination": 0.05},
    "sci_lr": {"epochs": 2, "pretrain_epochs": 2, "learning_rate": 1e-4},
    "sci_wd": {"epochs": 2, "pretrain_epochs": 2, "weight_decay": 1e-5},
    "yes_name": {},
}
REFUSED_CONFIGS = {
    "bool_str": r":4: .*bn_shift: expected bool \(true or false\), found str",
    "epochs_float": r":4: .*epochs: expected int, found float",
    "epochs_str": r":4: .*epochs: expected int, found str",
    "hidden_empty": r":4: .*hidden_dims must be widths >= 1",
    "hidden_str": r":4: .*hidden_dims: widths or exp1, exp2_deeper",
    "knn_neg": r":4: .*n_neighbors: expected int, found float",
    "ladder_no": r":5: unknown key 'evaluate\.ladder'; it is now called 'robustness'",
    "lr_inf": r":4: .*learning_rate: expected a finite number, found nan",
    "no_audio": r":6: unknown key 'evaluate\.ladder'",
    "octal": r":4: .*n_estimators: expected int, found str \('010'\); .* write 10, or 0o10",
    "seeds_int": r":5: seeds: expected a list of int, found int",
    "seeds_range": r":5: seeds: expected a list of int, found str",
    "tab": r":3: not valid YAML: .*indent with spaces, not tabs",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_have_the_meant_types(cases, name):
    config = load_config(cases / "yaml" / f"{name}.yaml")
    check_complete(config)
    assert config.detectors[0].params == CONFIGS[name]
    assert isinstance(config.name, str)


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_configs_are_refused_with_file_line_and_type(cases, name):
    with pytest.raises(UserError, match=rf"{name}\.yaml{REFUSED_CONFIGS[name]}"):
        check_complete(load_config(cases / "yaml" / f"{name}.yaml"))


def test_a_rate_that_so_few_loops_cannot_give_is_refused(cases, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(cases / "calibration")
    assert main(["run", "conf.yaml", "-o", str(tmp_path / "out")]) == 2
    assert "0.01 needs 99 held-out normal loops; there are 60" in capsys.readouterr().err


LINES = ["backslash", "bom", "cr_only", "crlf", "plain", "quoted", "trailing_space", "utf16"]
FOUR = ["a.wav", "b c.wav", "d.WAV", "e.wav"]
LISTS = {
    **{
        f"{name}.txt": FOUR
        for name in [
            "backslash",
            "bom",
            "cr_only",
            "crlf",
            "plain",
            "quoted",
            "trailing_space",
            "utf16",
        ]
    },
    "csvlist.csv": ["a.wav"],
    "empty.txt": [],
    "list.m3u": ["a.wav"],
    "nfc.txt": ["Übung é.wav", "a.wav"],
    "loops/hash.txt": ["a.wav", "#1 bass.wav", "e.wav"],
}


@pytest.mark.parametrize("name", LISTS)
def test_every_line_of_a_list_is_a_row(cases, name, tmp_path):
    folder = shutil.copytree(cases / "lists", tmp_path / "lists")
    for loop in (*FOUR, "#1 bass.wav", unicodedata.normalize("NFD", "Übung é.wav")):
        (folder / "loops" / loop).write_bytes(b"RIFF")
    rows = list(scan([folder / name]))
    assert all(isinstance(row, Loop) for row in rows)
    found = [unicodedata.normalize("NFC", Path(row.path).name) for row in rows]
    assert found == LISTS[name]


def test_a_file_address_that_leads_nowhere_is_a_failure(cases):
    (row,) = scan([cases / "lists" / "fileuri.txt"])
    assert getattr(row, "reason", "") == "not_found"


def test_every_file_is_named_here(cases):
    def names(folder: str, pattern: str) -> set[str]:
        return {path.stem for path in (cases / folder).glob(pattern)}

    assert names("labels", "*.csv") == {f"labels{kind}" for kind in (*LABELS, "_two")}
    assert names("parquet", "*.parquet") == {*TABLES, *REFUSED_TABLES}
    assert names("yaml", "*.yaml") == {*CONFIGS, *REFUSED_CONFIGS}
    assert names("lists", "*.*") == {Path(n).stem for n in LISTS if "/" not in n} | {"fileuri"}
