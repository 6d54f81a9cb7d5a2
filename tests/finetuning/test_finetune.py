"""Whole trainings with a tiny encoder: resumed, rejected, collapsed, exported, every objective."""

import errno
import importlib.util
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from orbax.checkpoint import CheckpointManager

import loopjax.io
from loopjax.arrays import read_arrays
from loopjax.audio.sources.selection import Selection
from loopjax.audio.sources.source import open_source
from loopjax.cli import main
from loopjax.config import to_dict
from loopjax.embedding.chain import embed
from loopjax.encoders.load import load_encoder, verify
from loopjax.errors import ModelCheckError, TooManyRejectedError, UserError
from loopjax.experiment.finetune import finetune
from loopjax.finetuning.batches import BatchReader, Slot, list_loops
from loopjax.hub.card import describe
from loopjax.io import locked
from tests.finetuning.tiny import tiny_config, write_encoder, write_loops

KNN = [{"name": "knn", "kind": "knn", "params": {"n_neighbors": 2}}]
LOGGERS = ["tensorboard"] if importlib.util.find_spec("tensorboardX") else []


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(loops, encoder) folders."""
    folder = tmp_path_factory.mktemp("finetune")
    return write_loops(folder / "loops", long=False), write_encoder(folder / "encoder")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """An undisturbed training."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return finetune(tiny_config(*inputs), run, loggers=LOGGERS)


def weights_of(result) -> dict[str, np.ndarray]:
    return read_arrays(result.encoder / "weights")


def require_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_equal_bytes(inputs, whole, tmp_path):
    def kill(step, metrics):
        if step == 3:
            raise Killed

    config = tiny_config(*inputs)
    with pytest.raises(Killed):
        finetune(config, tmp_path / "run", on_step=kill, loggers=LOGGERS)
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"half a li')
    steps = []
    result = finetune(
        config,
        tmp_path / "run",
        on_step=lambda step, metrics: steps.append(step),
        loggers=LOGGERS,
    )
    assert steps[0] == 3  # a checkpoint every two steps; a pass has 19 loops, a step 8
    lines = [(r.encoder.parent / "metrics.jsonl").read_text() for r in (result, whole)]
    assert lines[0] == lines[1]
    for name in LOGGERS:
        assert len(list((tmp_path / "run" / "tb").iterdir())) == 1, name
    require_equal(weights_of(result), weights_of(whole))
    np.testing.assert_array_equal(result.curve, whole.curve)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_to_equal_bytes(
    inputs, whole, tmp_path, monkeypatch, capsys
):
    folder, settings = tmp_path / "run", tmp_path / "config.yaml"
    settings.write_text(json.dumps(to_dict(tiny_config(*inputs))), "utf-8")
    verb = ["finetune", str(settings), "-o", str(folder)]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync, save = loopjax.io._sync, CheckpointManager.save

    def saves_the_first(manager, step, *args, **options):
        if step > 2:
            raise full
        return save(manager, step, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointManager, "save", saves_the_first)
        assert main(verb) == 6
    assert f"cannot save checkpoint 4 to {folder / 'states'}: [Errno 28]" in capsys.readouterr().err
    for name in ("encoder/config.json", "finetune.json"):

        def syncs_all_but_one(path, name=name):
            if f".{name.split('/')[0]}." in str(path):  # its temporary name
                raise full
            sync(path)

        with monkeypatch.context() as patched:
            patched.setattr(loopjax.io, "_sync", syncs_all_but_one)
            assert main(verb) == 6
        told = capsys.readouterr().err
        assert f"cannot write {folder / name}: No space left on device" in told
    assert main(verb) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (
        whole.encoder.parent / "metrics.jsonl"
    ).read_bytes()
    first, second = read_arrays(folder / "encoder" / "weights"), weights_of(whole)
    require_equal(first, second)


def test_loops_enter_as_in_embed(inputs, tmp_path):
    config, encoder = tiny_config(*inputs, data={"holdout": 0.5}), load_encoder(inputs[1])
    loops = write_loops(tmp_path / "loops")  # one of them is longer than a clip
    source = open_source([str(loops)], Selection())
    listed = list_loops(source, config.data, 8)
    reader = BatchReader(
        source, encoder, config.embed, config.augment, listed, Slot(8, 1), targets={}, seed=0
    )
    found = []
    for batch in reader.held_out():
        mel, longer, mask = (x[0] for x in (batch.mel, batch.longer, batch.rows.mask))
        views = np.broadcast_to(mel, (8, *encoder.mel_shape))
        found += [*np.asarray(encoder.encode(views, longer))[mask]]
    embedded = embed([str(loops)], encoder, config=config.embed)
    of_key = dict(zip(embedded.table["key"].to_pylist(), embedded.matrix, strict=True))
    assert len(found) == len(listed.held_out) == 12
    expected = np.stack([of_key[loop.key] for loop in listed.held_out])
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5 * np.abs(expected).max())


def test_the_result_is_an_encoder_with_its_origin(inputs, whole):
    assert "as recorded" in verify(whole.encoder)
    record = json.loads((whole.encoder / "config.json").read_text("utf-8"))
    parent = load_encoder(inputs[1])
    assert record["about"]["parent"]["weights_sha256"] == parent.weights_sha256
    assert record["about"]["license"] == "MIT"
    assert record["about"]["finetuning"]["optimizer"]["steps"] == 6
    tuned = load_encoder(whole.encoder)
    assert tuned.id == "tuned"
    assert tuned.weights_sha256 != parent.weights_sha256
    assert tuned.config == parent.config  # no adapters are left
    facts = describe(whole.encoder).facts
    assert facts["trained from"] == f"tiny-random, weights_sha256 {parent.weights_sha256}"
    assert facts["trained for"] == f"contrastive, lora: {whole.best_step} steps on 19 loops"


def test_every_step_reaches_the_sinks(inputs, whole, tmp_path):
    folder = whole.encoder.parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(6))
    assert {line["detector"] for line in lines} == {"tuned"}
    assert {line["stage"] for line in lines} == {"contrastive"}
    np.testing.assert_array_equal([np.float32(line["loss"]) for line in lines], whole.curve[:, 0])
    assert ["held_out_loss" in line for line in lines] == [False, True] * 3
    if importlib.util.find_spec("tensorboardX"):
        (events,) = (folder / "tb").iterdir()
        assert events.read_bytes().count(b"tuned/contrastive/gradient_norm") == 6
    with pytest.raises(UserError, match="no logger 'mlflow'"):
        finetune(tiny_config(*inputs), tmp_path / "run", loggers=["mlflow"])


@pytest.mark.slow
def test_bf16_trains_float32_weights_along_the_same_curve(inputs, whole, tmp_path):
    result = finetune(tiny_config(*inputs, embed={"precision": "bf16"}), tmp_path / "run")
    assert {value.dtype for value in weights_of(result).values()} == {np.dtype("float32")}
    assert not np.array_equal(result.curve, whole.curve)
    np.testing.assert_allclose(result.curve[:, :2], whole.curve[:, :2], rtol=0.03)


@pytest.mark.slow
def test_pitch_and_time_change_on_the_host_as_the_seed_says(inputs, whole, tmp_path):
    pytest.importorskip("pedalboard")
    config = tiny_config(*inputs, augment={"pitch_cents": 200.0, "stretch_percent": 10.0})
    curves = [finetune(config, tmp_path / name).curve for name in ("first", "second")]
    np.testing.assert_array_equal(*curves)
    assert np.isfinite(curves[0][:, 0]).all()
    assert np.abs(curves[0][:, 0] - whole.curve[:, 0]).max() > 1e-3


@pytest.mark.slow
def test_the_loss_falls_and_only_adapted_kernels_change(inputs, tmp_path):
    config = tiny_config(
        *inputs,
        optimizer={"steps": 30, "learning_rate": 1e-2},
        every_steps=30,
        augment={"time_stripe": 0, "band_stripe": 0, "tilt_db": 0.0},
    )
    result = finetune(config, tmp_path / "run")
    assert result.curve[-5:, 0].mean() < 0.9 * result.curve[:5, 0].mean()
    before, after = read_arrays(inputs[1] / "weights"), weights_of(result)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    kernels = {f"{layer}.kernel" for layer in ("qkv", "proj", "fc1", "fc2")}
    assert {
        name.split(".", 4)[-1].removeprefix("attn.").removeprefix("mlp.") for name in changed
    } == kernels
    assert all(name.startswith("stages.") for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "mean-shifted", "projection": 4},
        {"kind": "groups"},
        {"kind": "one-class", "anchor": 0.1},
        {"kind": "distill", "teacher": "log-mel-statistics"},
    ],
    ids=lambda objective: objective["kind"],
)
def test_every_objective_lowers_its_loss(inputs, tmp_path, objective):
    config = tiny_config(
        *inputs,
        objective=objective,
        trainable={"what": "all"},
        optimizer={"steps": 20, "learning_rate": 3e-3, "batch_size": 16},
        every_steps=20,
        min_spread=0.0,
    )
    result = finetune(config, tmp_path / "run")
    assert result.curve[-4:, 0].mean() < result.curve[:4, 0].mean()
    assert np.isfinite(result.curve[-1]).all()


@pytest.mark.slow
def test_from_a_stage_on_leaves_the_stages_before(inputs, tmp_path):
    config = tiny_config(
        *inputs,
        trainable={"what": "stages", "from_stage": 1},
        optimizer={"steps": 2, "ema": 0.0, "accumulate": 2, "remat": True},
    )
    after = weights_of(finetune(config, tmp_path / "run"))
    before = read_arrays(inputs[1] / "weights")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {".".join(name.split(".")[:2]) for name in changed} == {
        "stages.1", "norm.scale", "norm.bias",
    }  # fmt: skip


@pytest.mark.slow
def test_an_encoder_that_gives_no_numbers_is_not_written(inputs, tmp_path):
    changes = {"trainable": {"what": "all"}, "min_spread": 0.0}
    changes["optimizer"] = {"steps": 1, "learning_rate": 1e30, "warmup_steps": 0}
    with pytest.raises(ModelCheckError, match="held-out loss after step 1 is nan"):
        finetune(tiny_config(*inputs, **changes), tmp_path / "run")
    changes["data"] = {"holdout": 0.0}
    with pytest.raises(ModelCheckError, match="no numbers; not written"):
        finetune(tiny_config(*inputs, **changes), tmp_path / "last")
    assert not (tmp_path / "last" / "encoder").exists()


@pytest.mark.slow
def test_collapse_ends_with_a_reason(inputs, tmp_path):
    config = tiny_config(
        *inputs,
        objective={"kind": "one-class"},
        trainable={"what": "all"},
        optimizer={"steps": 60, "learning_rate": 3e-2},
        min_spread=0.5,
    )
    with pytest.raises(ModelCheckError, match="collapsed: after"):
        finetune(config, tmp_path / "run")


def test_unreadable_loops_leave_empty_rows_and_are_told(inputs, whole, tmp_path):
    loops = write_loops(tmp_path / "loops")  # and one of them is longer than a clip
    for name in ("aa.wav", "bb.wav"):
        (loops / "low" / name).write_bytes(b"RIFF")
    result = finetune(tiny_config(loops, inputs[1]), tmp_path / "run")
    assert {failure.path.rsplit("/")[-1] for failure in result.rejected} == {"aa.wav", "bb.wav"}
    assert np.isfinite(result.curve[:, 0]).all()
    again = finetune(tiny_config(loops, inputs[1]), tmp_path / "run")  # it trains no more
    assert again.rejected == result.rejected
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{file}\n" for file in [*loops.rglob("*.wav"), "gone.wav"]))
    strict = tiny_config(listed, inputs[1], embed={"strict": True})
    with pytest.raises(TooManyRejectedError, match=r"gone\.wav"):
        finetune(strict, tmp_path / "listed")
    assert 0 < result.curve[:, 3].min() <= result.curve[:, 3].max() == 8
    strict = tiny_config(loops, inputs[1], embed={"max_failures": 0.01})
    with pytest.raises(TooManyRejectedError, match="of 26 loops cannot be read"):
        finetune(strict, tmp_path / "strict")
    for file in loops.rglob("*.wav"):
        file.write_bytes(b"RIFF" + file.name.encode())
    with pytest.raises(TooManyRejectedError, match="none of the first 8 loops can be read"):
        finetune(tiny_config(loops, inputs[1]), tmp_path / "none")


@pytest.mark.slow
def test_tables_before_and_after_for_groups(inputs, tmp_path):
    config = tiny_config(*inputs, detectors=KNN)
    result = finetune(config, tmp_path / "run")
    groups, spread = result.evaluation.tables
    assert groups.rows[0]["detector"] == "knn"
    assert 0.4 < groups.rows[0]["before"] <= 1
    assert "groups won" in groups.rows[0]
    assert spread.rows[1]["encoder"] == "after: tuned"
    record = json.loads((tmp_path / "run" / "finetune.json").read_text("utf-8"))
    assert record["evaluation"]["tables"][0]["title"] == groups.title
    assert len(record["curve"]) == 6


def test_a_column_of_records_names_the_groups(inputs, tmp_path):
    files = sorted(inputs[0].rglob("*.wav"))
    kinds = ["" if row == 5 else ("sine", "tone")[row % 2] for row in range(len(files))]
    columns = {"audio": [file.read_bytes() for file in files], "kind": kinds}
    pq.write_table(pa.table(columns), tmp_path / "loops.parquet")
    settings = {"objective": {"kind": "groups"}, "detectors": [{"name": "knn", "kind": "knn"}]}
    data = {"sources": [str(tmp_path / "loops.parquet")], "group_column": "kind"}
    result = finetune(tiny_config(*inputs, **settings, data=data), tmp_path / "run")
    groups = result.evaluation.tables[0]
    assert groups.rows[0]["groups won"].endswith("of 2")
    assert np.isfinite(result.curve[:, 0]).all()
    data["group_column"] = "instrument"
    with pytest.raises(UserError, match=r"'instrument'; its records have .*kind"):
        finetune(tiny_config(*inputs, **settings, data=data), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"sources": []}}, "data.sources"),
        ({"data": {"group_column": "kind"}}, "only records have columns"),
        ({"data": {"group_column": "kind", "group_depth": 1}}, "leave data.group_depth out"),
        ({"optimizer": {"batch_size": 9, "accumulate": 2}}, "do not divide a batch of 9"),
        ({"optimizer": {"batch_size": 64}}, "do not fill a batch"),
        ({"optimizer": {"warmup_steps": 10}}, "do not fit into 6 steps"),
        ({"objective": {"kind": "distill"}}, "objective.teacher"),
        ({"objective": {"kind": "distill", "teacher": "clap-fuzed"}}, "no encoder 'clap-fuzed'"),
        ({"trainable": {"what": "stages", "from_stage": 2}}, "has 2 stages"),
        ({"data": {"labels": "none.csv"}, "detectors": KNN}, "cannot read labels none.csv"),
        ({"data": {"measure_on": ["none"]}, "detectors": KNN}, "none: no such file"),
        ({"embed": {"precision": "bf16-fast"}}, "is for inference"),
        ({"embed": {"encoder": "log-mel-statistics"}}, "no weights to train"),
        ({"embed": {"crops": "seeded:2"}}, "embed.crops"),
        ({"objective": {"kind": "groups"}, "data": {"group_depth": 0, "include": "x"}}, "include"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(inputs, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        finetune(tiny_config(*inputs, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_groups_must_be_two(inputs, tmp_path):
    changes = {"data": {"sources": [str(inputs[0] / "low")]}, "optimizer": {"batch_size": 4}}
    with pytest.raises(UserError, match="at least two folders"):
        finetune(tiny_config(*inputs, **changes, objective={"kind": "groups"}), tmp_path / "run")


def test_another_run_is_not_overwritten(inputs, whole):
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        finetune(tiny_config(*inputs, seed=1), whole.encoder.parent)


def test_a_restart_deletes_what_a_run_wrote_and_nothing_else(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.encoder.parent, folder)
    (folder / "encoder" / "notes.txt").write_text("mine")
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(UserError, match="1 files that no run has written"):
        finetune(tiny_config(*inputs), folder, restart=True)
    assert sorted(path for path in folder.rglob("*")) == before
    (folder / "encoder" / "notes.txt").unlink()
    steps = []
    finetune(
        tiny_config(*inputs), folder, restart=True, on_step=lambda step, metrics: steps.append(step)
    )
    assert steps[0] == 1


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_something_else_is_refused(inputs, tmp_path, restart):
    shutil.copytree(inputs[1], tmp_path / "run" / "encoder")
    with pytest.raises(UserError, match="something else than a fine-tuning"):
        finetune(tiny_config(*inputs), tmp_path / "run", restart=restart)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["encoder"]
    with pytest.raises(UserError, match="is read from"):
        finetune(tiny_config(*inputs), inputs[0], restart=restart)


def test_two_at_work_in_one_folder_are_refused(inputs, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another"):
        finetune(tiny_config(*inputs), tmp_path / "run")
