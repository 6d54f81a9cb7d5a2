"""Conversion end to end: folders that are complete or absent, probes, refusals with reasons."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from loopjax.convert.encoder import convert_encoder
from loopjax.encoders import storage as encoder_files
from loopjax.encoders.storage import read_encoder, save_encoder, verify_encoder
from loopjax.errors import ModelCheckError, UserError
from scripts.fuzz.torch_files import Call, Global, write_torch
from scripts.goldens.synthetic import clip
from tests.htsat.cases import checkpoint, encoder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A LAION file as published, training state and all, and the folder it became."""
    folder = tmp_path_factory.mktemp("convert")
    state = {f"module.{k}": v for k, v in checkpoint("laion_mini_fused").items()}
    state["module.text_branch.embeddings.position_ids"] = np.arange(4)
    state["module.logit_scale_a"] = np.float32([1.0])
    state["module.text_branch.big"] = np.zeros((300, 300), np.float32)
    source = write_torch(folder / "clap.pt", {"epoch": 15, "state_dict": state, "optimizer": {}})
    return source, convert_encoder(source, folder / "out")


@pytest.fixture
def no_probe(monkeypatch):
    """Spares the compilation of the probe where it is not the point."""
    monkeypatch.setattr(
        encoder_files, "probe_embeddings", lambda e: np.zeros((2, e.embedding_dim), np.float32)
    )


def refusal(source, out) -> str:
    with pytest.raises(UserError) as caught:
        convert_encoder(source, out)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))
    return str(caught.value)


def test_a_converted_folder_gives_the_same_embedding(converted):
    _, done = converted
    model, direct = read_encoder(done.folder), encoder("laion_mini_fused")
    assert model.weights_sha256 == direct.weights_sha256
    views = direct.front_end(clip(96000)[None], np.array([96000]))
    np.testing.assert_array_equal(model.encode(*views), direct.encode(*views))


def test_the_record_says_what_it_is_and_where_it_came_from(converted):
    source, done = converted
    record = json.loads((done.folder / "config.json").read_text())
    assert record["architecture"]["fusion"] is True
    assert record["front_end"]["mel_scale"] == "htk"
    about = record["about"]
    assert about["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert about["source_file"] == "clap.pt"
    assert "unknown" in about["license"]
    assert record["id"] == "clap"
    assert "with feature fusion, 128-wide" in str(done)


def test_verify_recomputes_the_probe(converted, tmp_path):
    _, done = converted
    assert "probe embeddings differ by 0.0e+00" in verify_encoder(done.folder)
    other = shutil.copytree(done.folder, tmp_path / "copy")
    record = json.loads((other / "config.json").read_text())
    record["front_end"]["fmin_hz"] = 0.0
    (other / "config.json").write_text(json.dumps(record))
    with pytest.raises(ModelCheckError, match="other embeddings"):
        verify_encoder(other)


def test_damaged_folders_are_named(converted, tmp_path):
    _, done = converted
    other = shutil.copytree(done.folder, tmp_path / "copy")
    record = json.loads((other / "config.json").read_text())
    record["weights_sha256"] = "0" * 64
    (other / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="recorded hash"):
        read_encoder(other)
    (other / "config.json").write_text("{")
    with pytest.raises(UserError, match="no encoder folder"):
        read_encoder(other)
    (other / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(UserError, match="no encoder folder"):
        read_encoder(other)


def test_an_existing_folder_is_not_touched(converted, tmp_path):
    source, done = converted
    with pytest.raises(UserError, match="exists"):
        convert_encoder(source, done.folder)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "diary.txt").write_text("dear")
    model = encoder("laion_mini_fused")
    with pytest.raises(UserError, match="no encoder folder"):
        save_encoder(other, model.config, model.mel_config, {}, encoder_id="x", about={})
    assert (other / "diary.txt").read_text() == "dear"


@pytest.fixture
def hub_folder(tmp_path):
    """A Hugging Face folder: weights, config, preprocessor."""
    folder = tmp_path / "clap-hub"
    folder.mkdir()
    tensors = checkpoint("hf_mini_fused") | {"text_model.x": np.zeros(3, np.float32)}
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
    )
    audio = {"enable_fusion": True, "fusion_type": None, "patch_stride": [4, 4]}
    (folder / "config.json").write_text(json.dumps({"audio_config": audio}))
    settings = {"frequency_min": 50, "truncation": "fusion", "sampling_rate": 48000}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.usefixtures("no_probe")
def test_hugging_face_folders(hub_folder, tmp_path):
    convert_encoder(hub_folder, tmp_path / "out")
    model = read_encoder(tmp_path / "out")
    assert model.fusion
    assert model.weights_sha256 == encoder("hf_mini_fused").weights_sha256
    assert model.mel_config == encoder("hf_mini_fused").mel_config
    assert model.id == "clap-hub"
    settings = hub_folder / "preprocessor_config.json"
    settings.write_text(json.dumps({"truncation": "rand_trunc"}))
    again = convert_encoder(hub_folder / "model.safetensors", tmp_path / "again")
    assert read_encoder(tmp_path / "again").mel_config.fmin_hz == 0.0  # the extractor's default
    assert "truncation 'rand_trunc'" in again.assumptions[0]


@pytest.mark.faults
def test_a_hub_config_that_does_not_fit(hub_folder, tmp_path):
    out, config = tmp_path / "out", hub_folder / "config.json"
    config.write_text(json.dumps({"audio_config": {"layer_norm_eps": 1e-3}}))
    assert "layer_norm_eps=0.001" in refusal(hub_folder, out)
    config.write_text(json.dumps({"audio_config": {"enable_fusion": False}}))
    assert "not used: audio_model.audio_encoder.patch_embed.fusion_model" in refusal(
        hub_folder, out
    )
    config.write_text("{")
    assert "config.json is unreadable" in refusal(hub_folder, out)
    config.unlink()
    settings = hub_folder / "preprocessor_config.json"
    settings.write_text(json.dumps({"top_db": 80}))
    assert "top_db" in refusal(hub_folder, out)


@pytest.mark.usefixtures("no_probe")
def test_half_precision_safetensors(tmp_path):
    tensors = {k: v.astype(np.float16) for k, v in checkpoint("hf_mini_unfused").items()}
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    save_file(tensors, tmp_path / "half.safetensors")
    convert_encoder(tmp_path / "half.safetensors", tmp_path / "out")
    model = read_encoder(tmp_path / "out")
    assert model.params.norm.scale[...].dtype == np.float32


@pytest.mark.faults
def test_a_key_report_leaves_nothing_behind(tmp_path):
    state = checkpoint("laion_mini_unfused")
    state["audio_branch.norm.gamma"] = state.pop("audio_branch.norm.weight")
    message = refusal(write_torch(tmp_path / "a.pt", {"state_dict": state}), tmp_path / "out")
    assert "audio_branch.norm.weight" in message
    assert "audio_branch.norm.gamma" in message


@pytest.mark.faults
def test_a_published_name_says_whether_there_is_fusion(tmp_path):
    """The folder would carry that name and license, so its weights must be of that kind."""
    unfused = checkpoint("laion_mini_unfused")
    file = write_torch(tmp_path / "630k-audioset-fusion-best.pt", {"state_dict": unfused})
    assert "trained without it" in refusal(file, tmp_path / "out")
    fused = checkpoint("laion_mini_fused")
    file = write_torch(tmp_path / "630k-audioset-best.pt", {"state_dict": fused})
    assert "not used: audio_branch.patch_embed.mel_conv2d" in refusal(file, tmp_path / "out")


@pytest.mark.faults
def test_a_checkpoint_that_runs_code(tmp_path):
    canary = tmp_path / "canary"
    state = checkpoint("retrocirce_mini") | {
        "sed_model.x": Call(Global("os", "system"), (f"touch {canary}",))
    }
    message = refusal(write_torch(tmp_path / "a.ckpt", {"state_dict": state}), tmp_path / "out")
    assert "os.system" in message
    assert not canary.exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.safetensors", b"", "no complete safetensors file"),
        ("a.safetensors", (2**40).to_bytes(8, "little") + b"{}", "no complete safetensors file"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
        ("a.pt", b"", "no complete PyTorch file"),
        ("a.onnx", b"x", "unknown kind of file"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in refusal(tmp_path / name, tmp_path / "out")


@pytest.mark.faults
def test_truncated_and_overlapping_safetensors(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": np.ones(100, np.float32), "b": np.ones(100, np.float32)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    assert "no complete safetensors file" in refusal(file, tmp_path / "out")
    file.write_bytes(whole.replace(b"[400,800]", b"[000,400]"))
    assert "no complete safetensors file" in refusal(file, tmp_path / "out")


@pytest.mark.faults
def test_sources_that_do_not_exist(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.pt", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no weights: neither model.safetensors" in refusal(
        tmp_path / "empty", tmp_path / "out"
    )
