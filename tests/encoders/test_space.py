"""What makes embeddings comparable, and how files of all versions say it."""

import dataclasses
import json

import pytest

from loopjax.encoders.space import Space, read_front_end
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig

SPACE = Space("x", "ab" * 32, 768, LogMelConfig.audioset_32khz(), False, location="/encoders/x")

# As written by version 0.1.0.
STORED = {
    "schema_version": "1",
    "encoder": "loopjax-nano",
    "weights_sha256": "d720bea4e4b2dc7dc871cc3d97960eff7d25c37c06629ab4807dfd79f7039b09",
    "preprocessing_sha256": "11af95304af6bc275ec45d0dc7a3d5c9e95c72511f90beabbf8da5e8e39b13f7",
    "preprocessing": '{"accept_truncated": false, "crops": "deterministic", "device_resampler": '
    '"kaiser 0.95686 97.73 13.04", "front_end.bank_rate_hz": null, "front_end.clip_samples": '
    '480000, "front_end.filling": "repeatpad", "front_end.fmax_hz": 14000.0, "front_end.fmin_hz": '
    '50.0, "front_end.fusion": true, "front_end.hop_samples": 480, "front_end.mel_bins": 64, '
    '"front_end.mel_scale": "htk", "front_end.n_fft": 1024, "front_end.quantise_int16": true, '
    '"front_end.sample_rate_hz": 48000, "mono": "mean", "precision": "fp32", "resample": "auto", '
    '"sanitize": false}',
    "embedding_dim": "192",
    "encoder_path": "loopjax-nano",
}


def test_a_space_survives_its_metadata():
    back = Space.from_metadata(SPACE.to_metadata())
    assert back == SPACE
    assert back.location == "/encoders/x"


def test_a_store_of_the_first_version_reads_and_continues():
    space = Space.from_metadata(STORED)
    assert space.front_end == LogMelConfig()
    assert {"schema_version": "1", **space.to_metadata()} == STORED


def test_the_newer_spelling_of_a_key_is_read_as_well():
    text = STORED["preprocessing"].replace("quantise_int16", "quantize_int16")
    assert Space.from_metadata(STORED | {"preprocessing": text}) == Space.from_metadata(STORED)
    old = dataclasses.asdict(SPACE.front_end)
    old["quantise_int16"] = old.pop("quantize_int16")
    assert read_front_end(old) == SPACE.front_end


def test_where_an_encoder_lies_is_not_compared():
    assert dataclasses.replace(SPACE, location="elsewhere") == SPACE
    assert SPACE.differences(dataclasses.replace(SPACE, location=None)) == []


def test_differences_are_readable():
    front_end = dataclasses.replace(SPACE.front_end, mel_bins=32)
    other = dataclasses.replace(SPACE, mono="left", front_end=front_end)
    assert SPACE.differences(other) == [
        "mono: 'mean' instead of 'left'",
        "front_end.mel_bins: 64 instead of 32",
    ]


def test_embeddings_of_others_have_no_space():
    assert Space.from_metadata({"encoder": "external", "embedding_dim": "3"}) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"preprocessing": "{"},
        {"embedding_dim": "wide"},
        {"preprocessing": json.dumps({"front_end.from_the_future": 1, "front_end.fusion": True})},
    ],
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(UserError, match="embed again"):
        Space.from_metadata(STORED | damage)


@pytest.mark.parametrize("crops", ["random", "seeded", "seeded:0", "seeded:x"])
def test_crops_are_checked(crops):
    with pytest.raises(UserError, match="seeded:K"):
        dataclasses.replace(SPACE, crops=crops)
    assert dataclasses.replace(SPACE, crops="seeded:4").n_crops == 4
