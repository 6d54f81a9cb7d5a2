"""Checkpoints as people leave them: other names, shards, wrappers, containers, bare towers."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from loopjax.config import EmbedConfig
from loopjax.convert.encoder import convert_encoder
from loopjax.convert.files import find_weights
from loopjax.convert.layouts import find_branch
from loopjax.convert.mapping import map_checkpoint
from loopjax.embedding.chain import metadata_of
from loopjax.embedding.settings import space_of
from loopjax.encoders import storage
from loopjax.encoders.encoder import weights_digest
from loopjax.encoders.space import Space
from loopjax.encoders.storage import read_encoder
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from scripts.fuzz.torch_files import write_torch
from tests.htsat.cases import checkpoint, constant, encoder, lazy

SEVEN_S = {
    "sampling_rate": 44100,
    "max_length_s": 7,
    "padding": "pad",
    "truncation": "rand_trunc",
    "frequency_min": 50,
}
SEVEN_S_FRONT_END = LogMelConfig(
    sample_rate_hz=44100,
    mel_scale="slaney",
    clip_samples=308700,
    filling="pad",
    quantize_int16=False,
)


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    monkeypatch.setattr(
        storage, "probe_embeddings", lambda e: np.zeros((2, e.embedding_dim), np.float32)
    )


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "clap"
    made.mkdir()
    return made


def state() -> dict[str, np.ndarray]:
    return {k: np.ascontiguousarray(v) for k, v in checkpoint("hf_mini_unfused").items()}


def below(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def digest(tensors: dict[str, np.ndarray]) -> str:
    return weights_digest(map_checkpoint(lazy(tensors)).weights)


def refusal(source, tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        convert_encoder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


# ---- files ----


def test_the_settings_of_transformers_5_lie_in_processor_config(folder, tmp_path):
    save_file(state(), folder / "model.safetensors")
    processor = {"processor_class": "ClapProcessor", "feature_extractor": SEVEN_S}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "preprocessor_config.json").write_text(json.dumps({"truncation": "rand_trunc"}))
    done = convert_encoder(folder, tmp_path / "out")
    assert done.assumptions == []
    assert read_encoder(tmp_path / "out").mel_config == SEVEN_S_FRONT_END


def test_settings_of_a_processor_that_are_not_nested(folder, tmp_path):
    save_file(state(), folder / "model.safetensors")
    processor = {"processor_class": "ClapProcessor", **SEVEN_S}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    assert convert_encoder(folder, tmp_path / "out").assumptions == []
    assert read_encoder(tmp_path / "out").mel_config == SEVEN_S_FRONT_END


def test_training_state_beside_weights_in_a_container_called_module(folder, tmp_path):
    """DeepSpeed's name for the weights is also what wrappers put in front of every name."""
    moments = {"state": {0: {"exp_avg": np.ones(3, np.float32)}}}
    write_torch(folder / "last.pt", {"module": state(), "optimizer": moments, "epoch": 3})
    (folder / "preprocessor_config.json").write_text(json.dumps(SEVEN_S))
    convert_encoder(folder, tmp_path / "out")
    expected = encoder("hf_mini_unfused").weights_sha256
    assert read_encoder(tmp_path / "out").weights_sha256 == expected


def test_a_processor_without_settings_leaves_them_to_the_older_file(folder, tmp_path):
    save_file(state(), folder / "model.safetensors")
    (folder / "processor_config.json").write_text('{"feature_extractor": "ClapFeatureExtractor"}')
    (folder / "preprocessor_config.json").write_text(json.dumps(SEVEN_S))
    convert_encoder(folder, tmp_path / "out")
    assert read_encoder(tmp_path / "out").mel_config == SEVEN_S_FRONT_END


@pytest.mark.parametrize("name", ["finetuned.safetensors", "model.fp16.safetensors", "last.ckpt"])
def test_weights_of_any_name_beside_their_settings(folder, tmp_path, name):
    if name.endswith("ckpt"):
        write_torch(folder / name, state())
    else:
        save_file(state(), folder / name)
    (folder / "preprocessor_config.json").write_text(json.dumps(SEVEN_S))
    (folder / "training_args.bin").write_bytes(b"not weights")
    for out, source in (("out", folder), ("again", folder / name)):
        convert_encoder(source, tmp_path / out)
        assert read_encoder(tmp_path / out).mel_config == SEVEN_S_FRONT_END


def test_an_assumed_front_end_is_told(folder, tmp_path, caplog):
    save_file(state(), folder / "model.safetensors")
    done = convert_encoder(folder, tmp_path / "out")
    assert "is assumed" in done.assumptions[0]
    assert "is assumed" in caplog.text
    about = json.loads((tmp_path / "out" / "config.json").read_text())["about"]
    assert about["assumptions"] == done.assumptions
    assert done.assumptions[0] in about["notes"]
    model = read_encoder(tmp_path / "out")
    metadata = metadata_of(space_of(model, EmbedConfig()))
    assert done.assumptions[0] in metadata["front_end_assumptions"]
    space = Space.from_metadata(metadata)
    assert space == dataclasses.replace(space, assumptions=())
    assert list(space.assumptions) == done.assumptions


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_joined_by_their_index(folder, tmp_path, suffix):
    tensors, weight_map = state(), {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003{suffix}"
        part = dict(list(tensors.items())[number::3])
        save_file(part, folder / file) if suffix != ".bin" else write_torch(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    done = convert_encoder(folder, tmp_path / "out")
    model = read_encoder(tmp_path / "out")
    assert model.weights_sha256 == encoder("hf_mini_unfused").weights_sha256
    assert model.id == "clap"
    assert done.sha256 == find_weights(index).sha256()
    (folder / f"model-00002-of-00003{suffix}").unlink()
    assert "model-00002-of-00003" in refusal(folder, tmp_path.joinpath("x"))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "lists no tensors"),
        ({"weight_map": [1]}, "lists no tensors"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "no file beside the index"),
        ({"weight_map": {"a": "/etc/x.bin"}}, "no file beside the index"),
        ({"weight_map": {"a": 3}}, "no file beside the index"),
        ({"weight_map": {"a": "b.safetensors"}}, "not there: b.safetensors"),
        ({"weight_map": {"a": "a.safetensors"}}, "looks for a in a.safetensors, which has none"),
    ],
)
def test_indices_that_do_not_fit(folder, tmp_path, index, reason):
    save_file(state(), folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert reason in refusal(folder, tmp_path)


@pytest.mark.faults
def test_several_files_are_not_chosen_between(folder, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state(), folder / name)
    assert "several files of weights (a.safetensors, b.safetensors)" in refusal(folder, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '"x"', '{"a": NaN', "\x00", '{"audio_config": 3']
)
def test_json_that_is_none(folder, tmp_path, file, text):
    save_file(state(), folder / "model.safetensors")
    (folder / file).write_text(text)
    assert file in refusal(folder, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sampling_rate", None),
        ("sampling_rate", "48000"),
        ("sampling_rate", 0),
        ("sampling_rate", 44100.5),
        ("sampling_rate", True),
        ("sampling_rate", 1e300),
        ("hop_length", 0),
        ("hop_length", -480),
        ("hop_length", 48),
        ("fft_window_size", 1023),
        ("fft_window_size", 10**9),
        ("max_length_s", float("nan")),
        ("max_length_s", float("inf")),
        ("max_length_s", 0.001),
        ("max_length_s", 30),
        ("max_length_s", [10]),
        ("frequency_min", float("nan")),
        ("frequency_min", 20000),
        ("frequency_max", float("inf")),
        ("frequency_max", "x"),
        ("feature_size", 128),
        ("top_db", 80),
        ("padding", "longest"),
        ("padding", True),
        ("truncation", ["fusion"]),
    ],
)
def test_settings_that_cannot_be(folder, tmp_path, setting, value):
    save_file(state(), folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(SEVEN_S | {setting: value}))
    message = refusal(folder, tmp_path)
    assert "preprocessor_config.json" in message
    assert setting in message or "max_length_s" in message


@pytest.mark.faults
@pytest.mark.parametrize(
    "config",
    [
        {"audio_config": []},
        {"audio_config": "x"},
        {"audio_config": {"enable_fusion": "yes"}},
        {"audio_config": {"patch_size": {}}},
        {"enable_fusion": 1},
        {"spec_size": None},
    ],
)
def test_architectures_that_cannot_be(folder, tmp_path, config):
    save_file(state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder, tmp_path)


# ---- names ----


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module.clap.", "a.b.c.d."],
)
@pytest.mark.parametrize("name", ["laion_mini_fused", "hf_mini_unfused", "msclap_mini"])
def test_prefixes_of_any_depth(name, prefix):
    tensors = checkpoint(name)
    assert digest(below(prefix, tensors)) == digest(tensors)


def test_what_lies_beside_the_model_is_passed_over():
    tensors = below("model.", checkpoint("laion_mini_unfused"))
    wrapped = tensors | {"loss.weight": np.zeros(3, np.float32)}
    assert "loss.weight" in map_checkpoint(lazy(wrapped)).ignored


def test_a_compiled_part_within_a_model():
    tensors = checkpoint("laion_mini_unfused")
    inner = {k.replace("audio_branch.", "audio_branch._orig_mod."): v for k, v in tensors.items()}
    assert digest(inner) == digest(tensors)


def test_plain_weights_are_preferred_to_averaged_ones_and_told():
    tensors = checkpoint("laion_mini_unfused")
    other = {key: value + 1 if "norm" in key else value for key, value in tensors.items()}
    both = below("model.", tensors) | below("ema.", other) | below("model_ema.", other)
    mapped = map_checkpoint(lazy(both))
    assert weights_digest(mapped.weights) == digest(tensors)
    assert "'model.' is used, not 'ema.', 'model_ema.'" in mapped.notes[0]
    assert digest(below("ema.", other)) == digest(other)


def test_states_of_optimizers_are_no_towers():
    tensors = checkpoint("laion_mini_unfused")
    both = below("zzz.", tensors) | below("optimizer.exp_avg.", tensors)
    assert find_branch(lazy(both)).root == "zzz."


def test_the_report_says_below_what_the_names_lie():
    tensors = checkpoint("laion_mini_unfused")
    del tensors["audio_branch.norm.weight"]
    with pytest.raises(UserError, match=r"below 'x\.y\.'.*missing in the file: audio_branch\.norm"):
        map_checkpoint(lazy(below("x.y.", tensors)))


# ---- towers alone ----


@pytest.mark.parametrize("place", ["", "tower."])
@pytest.mark.parametrize(
    ("name", "branch", "taken_for"),
    [
        ("laion_mini_unfused", "audio_branch.", "LAION-CLAP's without fusion"),
        ("laion_mini_fused", "audio_branch.", None),
        ("retrocirce_mini", "sed_model.", "RetroCirce's for AudioSet"),
        ("hf_mini_unfused", "audio_model.audio_encoder.", None),
    ],
)
def test_bare_towers(name, branch, taken_for, place):
    whole = checkpoint(name)
    bare = {place + k.removeprefix(branch): v for k, v in whole.items() if k.startswith(branch)}
    mapped, expected = map_checkpoint(lazy(bare)), map_checkpoint(lazy(whole))
    assert mapped.front_end == expected.front_end
    assert mapped.config.projection_dim is None
    for key, array in mapped.weights.items():
        np.testing.assert_array_equal(array, expected.weights[key])
    assert [taken_for in a for a in mapped.assumptions] == ([True] if taken_for else [])


def test_a_single_tower_of_transformers():
    """`ClapAudioModel`, whose names begin one level further down than `ClapModel`'s."""
    whole = checkpoint("hf_mini_unfused")
    tower = {
        k.removeprefix("audio_model."): v for k, v in whole.items() if k.startswith("audio_model.")
    }
    assert map_checkpoint(lazy(tower)).layout.name == "hf"


@pytest.mark.faults
def test_a_bare_tower_that_does_not_say_its_rate_is_refused():
    branch = "audio_branch."
    whole = checkpoint("laion_mini_unfused")
    bare = {k.removeprefix(branch): v for k, v in whole.items() if k.startswith(branch)}
    del bare["logmel_extractor.melW"]
    with pytest.raises(UserError, match=r"save it inside its model \(audio_branch"):
        map_checkpoint(lazy(bare))


def test_the_tower_of_microsofts_captioning_model():
    tensors = checkpoint("msclap_mini")
    captioning = {
        k.replace("audio_encoder.", "clap.", 1): v
        for k, v in tensors.items()
        if k.startswith("audio_encoder.")
    } | {"gpt.transformer.wte.weight": np.zeros((2, 2), np.float32)}
    mapped = map_checkpoint(lazy(captioning))
    assert mapped.front_end == LogMelConfig.msclap_2023()
    assert weights_digest(mapped.weights) == digest(tensors)
    assert mapped.ignored[-1] == "gpt.transformer.wte.weight"


# ---- half precision ----


@pytest.mark.parametrize("again", [False, True], ids=["half", "half, saved as float32"])
@pytest.mark.parametrize("name", ["laion_mini_unfused", "retrocirce_mini", "msclap_mini"])
def test_constants_in_half_precision_are_recognized(name, again):
    tensors = {k: v.astype(np.float16) if v.dtype.kind == "f" else v
               for k, v in checkpoint(name).items()}  # fmt: skip
    if again:
        tensors = {
            k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in tensors.items()
        }
    assert map_checkpoint(lazy(tensors)).front_end == encoder(name).mel_config


@pytest.mark.faults
def test_a_bank_half_a_percent_off_is_not_excused_by_its_precision():
    tensors = checkpoint("laion_mini_unfused")
    key = "audio_branch.logmel_extractor.melW"
    for bank in (tensors[key] * np.float32(1.005), constant(key, (513, 64), "48000") ** 1.001):
        with pytest.raises(UserError, match="unknown filter bank"):
            map_checkpoint(lazy(tensors | {key: bank}))
