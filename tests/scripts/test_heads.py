"""How heads are compared: the rendered corpora, and the choice of the default detector."""

import json
from pathlib import Path

import numpy as np

from loopjax.detectors import DEFAULT_KIND, make_detector
from loopjax.evaluation.tables import Estimate, Evaluation, Table
from loopjax.experiment.load import load_config
from scripts.heads.choose_default import RECORD, choose, read_means
from scripts.heads.corpora import LOOPS, copy_by_prefix, plans_of, programs_of
from scripts.heads.tuned import (
    NORMAL,
    SEEDS,
    Corpus,
    bundled_corpus,
    markdown,
    measure,
    settings_of,
    split,
)
from scripts.heads.tuned import PAGE as TUNED_PAGE
from scripts.heads.tuned import RECORD as TUNED
from scripts.render.programs import FAMILIES


def test_the_unseen_programs_are_those_that_trained_no_encoder():
    unseen, familiar = programs_of("programs"), programs_of("familiar")
    assert len(unseen) >= 20 and not set(unseen) & set(familiar)
    for family, number in unseen:
        assert number in FAMILIES[family].held_out
    for family, number in familiar:
        assert number not in FAMILIES[family].held_out


def test_every_program_has_loops_of_its_own_and_the_same_each_time():
    plans = plans_of("programs", ("bass", 35))
    assert len(plans) >= LOOPS["programs"]
    assert plans == plans_of("programs", ("bass", 35))
    assert {(plan.family, plan.program, plan.degradation) for plan in plans} == {
        ("bass", 35, "none")
    }
    other = plans_of("programs", ("bass", 37))
    assert [plan.tempo_bpm for plan in other] != [plan.tempo_bpm for plan in plans]


def test_samples_are_grouped_by_the_first_word_of_their_names(tmp_path):
    for i in range(8):
        (tmp_path / f"hat_{i}.flac").write_bytes(b"x")
    (tmp_path / "sn_1.flac").write_bytes(b"x")
    copy_by_prefix(tmp_path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["hat"]
    assert len(list((tmp_path / "out" / "hat").iterdir())) == 8


def test_the_highest_mean_is_chosen(tmp_path):
    rows = (
        {"detector": "a", "x P1": Estimate(0.9), "x P3": Estimate(0.5)},
        {"detector": "b", "x P1": Estimate(0.8), "x P3": Estimate(0.7)},
    )
    evaluation = Evaluation((Table("AUROC by detector", "", rows),))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation.to_json()), "utf-8")
    means = read_means(tmp_path)
    assert means["a"] == {"x P1": 0.9, "x P3": 0.5}
    assert choose(means) == "b"


def test_the_default_is_the_one_that_the_script_chose():
    record = json.loads(RECORD.read_text("utf-8"))
    assert choose(record["auroc"]) == record["chosen"]
    frozen, demo = (
        {detector.name: detector for detector in load_config(name).detectors}
        for name in ("unseen", "demo")
    )
    chosen = frozen[record["chosen"]]
    assert chosen.kind == DEFAULT_KIND == demo[load_config("demo").primary].kind
    defaults = make_detector(DEFAULT_KIND).get_params()
    assert {name: defaults[name] for name in chosen.params} == chosen.params
    assert record["auroc"].keys() == frozen.keys()


def test_each_group_is_left_out_once_and_no_loop_is_on_both_sides():
    names = [f"group {i}" for i in range(7) for _ in range(9)]
    corpus = Corpus("seven", [Path(f"{i}.flac") for i in range(63)], np.array(names))
    left_out = []
    for seed in SEEDS:
        rows = split(corpus, seed)
        left_out += rows.left_out
        sides = [rows.train, rows.normal, *rows.left_out.values()]
        assert sorted(np.concatenate(sides)) == list(range(63))
        assert not set(corpus.groups[rows.train]) & set(rows.left_out)
    assert sorted(left_out) == sorted(set(names))
    bundled = bundled_corpus()
    rows = split(bundled, 0)
    assert set(bundled.groups[np.r_[rows.train, rows.normal]]) == {NORMAL}
    assert sum(map(len, rows.left_out.values())) == 35


def test_tuned_encoders_are_measured_on_what_was_left_out(tmp_path):
    corpus = Corpus("two", [tmp_path / f"{i}.flac" for i in range(60)], np.repeat(["a", "b"], 30))
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((60, 8)).astype(np.float32)
    matrix[:30] += 20
    rows = split(corpus, 0)
    found = measure(matrix, rows, 0)
    (out,) = rows.left_out
    assert {head: values[out, 0] for head, values in found.items()} == dict.fromkeys(found, 1.0)
    config = settings_of("lora", corpus, rows, 0, tmp_path)
    listed = Path(config.data.sources[0]).read_text().split()
    assert listed == [str(corpus.files[row]) for row in rows.train]
    assert config.trainable.what == "lora" and config.seed == 0
    frozen = {"corpus": "two", "head": "knn", "encoder": "frozen", "auroc": 0.5}
    lora = frozen | {"encoder": "lora", "auroc": 0.6, "difference": 0.1, "low": 0.0, "high": 0.2}
    lora |= {"groups_won": 3, "n_groups": 4, "p_groups": 0.125}
    assert markdown([frozen, lora]).splitlines()[-1] == (
        "| two | knn | 0.500 | lora | 0.600 | +0.100 (+0.000 to +0.200) | 3 of 4 | 0.125 |"
    )


def test_the_page_holds_the_table_that_was_measured():
    page = TUNED_PAGE.read_text(encoding="utf-8")
    assert markdown(json.loads(TUNED.read_text())) in page, "scripts.heads.tuned.keep writes it"
