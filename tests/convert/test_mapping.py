"""Checkpoints map strictly: everything is used, recomputed or ignored by name, or all is named."""

import numpy as np
import pytest

from loopjax.convert.mapping import Mapped, map_checkpoint
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig
from scripts.goldens.synthetic import SEEDS
from tests.htsat.cases import GOLDENS, checkpoint, constant, lazy

BLOCK = "audio_branch.layers.1.blocks.1."
HF_BLOCK = "audio_model.audio_encoder.layers.1.blocks.1."


@pytest.fixture
def tensors():
    return checkpoint("laion_mini_fused")


def convert(tensors, **options) -> Mapped:
    return map_checkpoint(lazy(tensors), **options)


def refusal(tensors, **options) -> str:
    with pytest.raises(UserError) as caught:
        convert(tensors, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", SEEDS)
def test_architecture_and_front_end_are_read_off_the_file(name):
    layout, size, *fused = name.split("_")
    mapped = convert(checkpoint(name))
    sizes = {
        "mini": HtsatConfig(width=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8)),
        "tiny": HtsatConfig.tiny(),
        "base": HtsatConfig.base(),
    }
    config, expected = mapped.config, sizes[size]
    assert mapped.layout.name == layout
    assert (config.width, config.depths, config.heads) == (
        expected.width,
        expected.depths,
        expected.heads,
    )
    assert config.fusion is (fused == ["fused"])
    assert (config.n_classes is None) is (layout == "hf")
    assert config.projection_dim == {"retrocirce": None, "msclap": 64}.get(layout, 512)
    assert (
        mapped.front_end
        == {
            ("laion", True): LogMelConfig.clap_fused(),
            ("laion", False): LogMelConfig.clap_unfused(),
            ("hf", True): LogMelConfig.clap_fused(quantize_int16=False),
            ("hf", False): LogMelConfig.clap_unfused(quantize_int16=False),
            ("retrocirce", False): LogMelConfig.audioset_32khz(),
            ("msclap", False): LogMelConfig.msclap_2023(),
        }[layout, config.fusion]
    )
    assert mapped.notes == []


def test_text_tower_training_state_and_wrappers_are_passed_over(tensors):
    extra = {
        "text_branch.embeddings.position_ids": np.arange(5),
        "text_branch.encoder.layer.0.output.dense.weight": np.zeros((2, 2), np.float32),
        "text_projection.0.weight": np.zeros((2, 2), np.float32),
        "text_transform.sequential.0.weight": np.zeros((2, 2), np.float32),
        "audio_transform.sequential.3.bias": np.zeros(2, np.float32),
        "logit_scale_a": np.float32(1),
        "logit_scale_t": np.float32(1),
    }
    plain = convert(tensors)
    wrapped = convert({f"module.{k}": np.asarray(v) for k, v in (tensors | extra).items()})
    assert set(wrapped.ignored) - set(plain.ignored) == set(extra)
    assert plain.weights.keys() == wrapped.weights.keys()
    for name, array in plain.weights.items():
        np.testing.assert_array_equal(array, wrapped.weights[name])


def test_averaged_checkpoints_store_their_tables_as_floats_or_not_at_all():
    tensors = checkpoint("retrocirce_mini")
    floats = {k: np.asarray(v, np.float32) for k, v in tensors.items()}
    bare = {k: v for k, v in tensors.items() if not k.endswith(("index", "attn_mask", "tracked"))}
    for variant in (floats, bare):
        assert convert(variant).weights.keys() == convert(tensors).weights.keys()


@pytest.mark.faults
@pytest.mark.parametrize(
    "key",
    [
        "audio_branch.bn0.running_mean",
        "audio_branch.patch_embed.proj.weight",
        "audio_branch.patch_embed.fusion_model.global_att.4.bias",
        "audio_branch.patch_embed.mel_conv2d.weight",
        "audio_branch.norm.bias",
        "audio_branch.tscam_conv.weight",
        "audio_projection.2.bias",
        BLOCK + "attn.relative_position_bias_table",
        BLOCK + "attn.qkv.bias",
        BLOCK + "mlp.fc2.weight",
        "audio_branch.layers.2.downsample.reduction.weight",
    ],
)
def test_one_tensor_removed_or_renamed(tensors, key):
    value = tensors.pop(key)
    assert f"missing in the file: {key}" in refusal(tensors)
    tensors[key + "_old"] = value
    message = refusal(tensors)
    assert f"missing in the file: {key}" in message
    assert f"in the file but not used: {key}_old" in message


@pytest.mark.faults
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_one_third_of_a_query_key_value_product_removed(part):
    tensors = checkpoint("hf_mini_unfused")
    key = f"{HF_BLOCK}attention.self.{part}.weight"
    del tensors[key]
    assert f"missing in the file: {key};" in refusal(tensors) + ";"


@pytest.mark.faults
@pytest.mark.parametrize(
    "key",
    [
        "audio_branch.bn0.weight",
        "audio_branch.patch_embed.norm.weight",
        "audio_branch.patch_embed.proj.weight",
        BLOCK + "norm1.weight",
        BLOCK + "attn.proj.weight",
        BLOCK + "attn.relative_position_bias_table",
        "audio_branch.tscam_conv.weight",
        "audio_projection.0.bias",
    ],
)
@pytest.mark.parametrize("axis", [0, -1])
def test_one_shape_changed(tensors, key, axis):
    array = tensors[key]
    tensors[key] = np.concatenate([array, array.take([0], axis)], axis)
    message = refusal(tensors)
    assert f"wrong shape: {key} gives" in message
    assert message.count("wrong shape") <= 3  # its own, or those it is measured by


@pytest.mark.faults
def test_another_rank_is_a_wrong_shape(tensors):
    for key in ("audio_branch.patch_embed.proj.weight", BLOCK + "attn.proj.weight"):
        changed = tensors | {key: tensors[key].reshape(1, *tensors[key].shape)}
        assert f"wrong shape: {key}" in refusal(changed)


@pytest.mark.faults
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number(tensors, value):
    key = BLOCK + "mlp.fc1.weight"
    tensors[key] = tensors[key].copy()
    tensors[key][3, 5] = value
    assert f"not a number: {key}" in refusal(tensors)


@pytest.mark.faults
def test_a_negative_variance(tensors):
    tensors["audio_branch.bn0.running_var"] = -tensors["audio_branch.bn0.running_var"]
    assert "negative variance" in refusal(tensors)


@pytest.mark.faults
def test_every_problem_is_reported_at_once(tensors):
    del tensors["audio_branch.norm.weight"], tensors["audio_branch.bn0.bias"]
    tensors["audio_branch.absolute_pos_embed"] = np.zeros((1, 4096, 16), np.float32)
    tensors["audio_projection.0.weight"] = np.zeros((3, 3), np.float32)
    message = refusal(tensors)
    for key in ("norm.weight", "bn0.bias", "absolute_pos_embed", "audio_projection.0.weight"):
        assert key in message


@pytest.mark.faults
def test_fusion_cannot_be_wished_onto_unfused_weights():
    message = refusal(checkpoint("laion_mini_unfused"), fusion=True)
    assert "audio_branch.patch_embed.mel_conv2d.weight" in message
    assert "audio_branch.patch_embed.fusion_model.local_att.0.weight" in message
    assert "trained without it" in message


@pytest.mark.faults
def test_fused_weights_are_not_used_as_unfused(tensors):
    message = refusal(tensors, fusion=False)
    assert "in the file but not used: audio_branch.patch_embed.mel_conv2d" in message


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("audio_branch.layers.4000000000.blocks.0.norm1.weight", (16,), "4000000001 stages"),
        ("audio_branch.layers.63.blocks.0.norm1.weight", (16,), "64 stages"),
        ("audio_branch.layers.1.blocks.4000000000.norm1.weight", (16,), "blocks are missing"),
        ("audio_branch.layers.1.blocks.63.norm1.weight", (16,), "blocks are missing"),
        ("audio_branch.layers.2.downsample.reduction.weight", (128, 0), "wrong shape"),
        ("audio_branch.tscam_conv.bias", (), "wrong shape"),
        ("audio_branch.tscam_conv.bias", (0,), "0 classes"),
        ("audio_branch.bn0.weight", (0,), "wrong shape"),
    ],
)
def test_names_and_shapes_that_ask_for_the_impossible(tensors, name, shape, reason):
    """They are refused at once, before anything of the claimed size is built."""
    assert reason in refusal(tensors | {name: np.zeros(shape, np.float32)})


@pytest.mark.faults
def test_a_file_of_something_else():
    message = refusal({"encoder.layer.0.weight": np.zeros((2, 2), np.float32)})
    assert "no HTS-AT found" in message
    assert "encoder.layer.0.weight" in message
    assert "none at all" in refusal({})


@pytest.mark.faults
@pytest.mark.parametrize("ending", ["attn.relative_position_index", "attn_mask"])
def test_constants_must_be_swins(tensors, ending):
    key = BLOCK + ending
    tensors[key] = tensors[key].T
    tensors[key] = np.roll(tensors[key], 1, axis=-1)
    assert f"unusual constant: {key}" in refusal(tensors)


def test_a_32_khz_bank_in_a_48_khz_tower_is_used_and_said():
    """The originals let the stored bank override the computed one."""
    tensors = checkpoint("laion_mini_unfused")
    key = "audio_branch.logmel_extractor.melW"
    tensors[key] = constant(key, (513, 64), "32000")
    mapped = convert(tensors)
    assert mapped.front_end == LogMelConfig.clap_unfused(bank_rate_hz=32000)
    assert "32000 Hz on 48000 Hz audio" in mapped.notes[0]


def test_a_48_khz_bank_in_an_audioset_checkpoint_decides_its_rate():
    tensors = checkpoint("retrocirce_mini")
    key = "sed_model.logmel_extractor.melW"
    tensors[key] = constant(key, (513, 64), "48000")
    front_end = convert(tensors).front_end
    assert front_end == LogMelConfig.audioset_32khz(sample_rate_hz=48000, hop_samples=480)
    assert (front_end.clip_frames, front_end.clip_samples) == (1024, 1024 * 480 - 1)


@pytest.mark.faults
def test_unknown_filters_and_windows_are_refused():
    tensors = checkpoint("laion_mini_unfused")
    key = "audio_branch.logmel_extractor.melW"
    assert "unknown filter bank" in refusal(tensors | {key: tensors[key] * 1.01})
    key = "audio_branch.spectrogram_extractor.stft.conv_real.weight"
    assert "unknown window" in refusal(tensors | {key: tensors[key] * 1.01})


def test_a_missing_bank_is_remarked():
    tensors = checkpoint("laion_mini_unfused")
    del tensors["audio_branch.logmel_extractor.melW"]
    assert "stores no filter bank" in convert(tensors).assumptions[0]


def test_golden_files_stay_small():
    assert sum(file.stat().st_size for file in GOLDENS.iterdir()) < 1_500_000
