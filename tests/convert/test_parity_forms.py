"""Live comparison: whatever form a checkpoint has, we embed a loop as transformers does."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from loopjax.convert.checkpoint import convert  # noqa: E402
from loopjax.encoders import storage  # noqa: E402
from loopjax.encoders.storage import read_encoder  # noqa: E402
from scripts.goldens import synthetic  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
ONE_MINUS_COSINE = 1e-6
AUDIO = {
    "patch_embeds_hidden_size": 16,
    "hidden_size": 128,
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 4, 8],
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
SEVEN_S = {"sampling_rate": 44100, "max_length_s": 7, "padding": "pad", "frequency_min": 50}
TEN_S = {"sampling_rate": 48000, "max_length_s": 10, "padding": "repeatpad", "frequency_min": 50}


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    monkeypatch.setattr(
        storage, "probe_embeddings", lambda e: np.zeros((2, e.embedding_dim), np.float32)
    )


def clap(fusion: bool, kind: str = "ClapModel"):
    """A transformers model whose every weight and statistic is random."""
    audio = transformers.ClapAudioConfig(enable_fusion=fusion, **AUDIO)
    if kind == "ClapModel":
        config = transformers.ClapConfig(text_config=TEXT, audio_config=audio.to_dict())
        model = transformers.ClapModel(config)
    else:
        model = getattr(transformers, kind)(audio)
    state = model.eval().state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if synthetic.is_learned(k)}
    random = synthetic.weights({k: s for k, s in shapes.items() if "text" not in k and s}, seed=3)
    model.load_state_dict(state | {k: torch.tensor(v) for k, v in random.items()})
    return model


def write_settings(folder: Path, model, fusion: bool, settings: dict, nested: bool = True) -> None:
    truncation = "fusion" if fusion else "rand_trunc"
    extractor = transformers.ClapFeatureExtractor(truncation=truncation, **settings)
    model.config.save_pretrained(folder)
    if nested:
        values = {"feature_extractor": extractor.to_dict(), "processor_class": "ClapProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(values))
    else:
        extractor.save_pretrained(folder)


def sharded_safetensors(model, folder):
    model.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def sharded_torch(model, folder):
    names = sorted(model.state_dict())
    weight_map = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        part = {name: model.state_dict()[name].clone() for name in names[number::3]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def another_name(model, folder):
    model.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "clap_finetuned.safetensors")


def training_file(prefix, container, precision=None):
    def write(model, folder):
        state = {f"{prefix}{k}": v.clone() for k, v in model.state_dict().items()}
        state = {k: v.to(precision) if precision and v.is_floating_point() else v
                 for k, v in state.items()}  # fmt: skip
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
        content = {container: state, "optimizer": optimizer, "epoch": 3} if container else state
        torch.save(content, folder / "last.ckpt")

    return write


FORMS = {
    "as published": lambda model, folder: model.save_pretrained(folder),
    "another file name": another_name,
    "shards": sharded_safetensors,
    "shards of PyTorch": sharded_torch,
    "half": lambda model, folder: model.half().save_pretrained(folder, variant="fp16"),
    "bfloat16": lambda model, folder: model.bfloat16().save_pretrained(folder),
    "model_state_dict, compiled and parallel": training_file(
        "module._orig_mod.", "model_state_dict"
    ),
    "model.": training_file("model.", ""),
    "Lightning": training_file("net.encoder.", "state_dict"),
    "ema": training_file("module.", "ema"),
    "half in training": training_file("", "model", torch.float16),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_embeds_as_transformers_does(form, tmp_path):
    check(clap(fusion=False), False, FORMS[form], SEVEN_S, tmp_path)


@pytest.mark.parametrize("kind", ["ClapAudioModel", "ClapAudioModelWithProjection"])
def test_single_towers(kind, tmp_path):
    check(clap(True, kind), True, FORMS["as published"], TEN_S, tmp_path)


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("fusion", [True, False])
def test_settings_of_the_front_end(fusion, nested, padding, tmp_path):
    settings = SEVEN_S | {"padding": padding}
    check(clap(fusion), fusion, FORMS["as published"], settings, tmp_path, nested)


def check(model, fusion, write, settings, tmp_path, nested=True):
    """Converts what `write` wrote and compares clips shorter, as long and longer than a clip."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write(model, folder)
    model = model.float()  # the values of half precision, computed in float32
    write_settings(folder, model, fusion, settings, nested)
    done = convert(folder, tmp_path / "encoder")
    assert not done.assumptions
    ours = read_encoder(tmp_path / "encoder")
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    rate, clip_s = settings["sampling_rate"], settings["max_length_s"]
    for seconds in (0.3 * clip_s, clip_s - 0.01, clip_s, 1.7 * clip_s):
        wave = synthetic.clip(round(seconds * rate), seed=2, rate_hz=rate)
        mel, longer, starts = extracted(extractor, wave, fusion)
        with torch.no_grad():
            audio = getattr(model, "audio_model", model)
            theirs = audio(torch.tensor(mel), is_longer=torch.tensor(longer)).pooler_output
        theirs = theirs.numpy()[0].astype(np.float64)
        views, flag = ours.front_end(wave[None], np.array([wave.size]), rate, crop_starts=starts)
        embedding = np.asarray(ours.encode(views, flag))[0].astype(np.float64)
        cosine = embedding @ theirs / np.linalg.norm(embedding) / np.linalg.norm(theirs)
        assert 1 - cosine <= ONE_MINUS_COSINE, seconds


def extracted(extractor, wave, fusion):
    """Their features of one clip, and the crop positions drawn.

    Two clips go in, so that the processor has a longer one and does not declare a short one long.
    """
    starts, choice, randint = [], np.random.choice, np.random.randint

    def draw(low, high=None):
        span = low if high is None else np.arange(low, high)
        starts.append(int(span[len(span) // 3]))
        return starts[-1]

    long = np.zeros(extractor.nb_max_samples * 2, np.float32)
    np.random.choice = np.random.randint = draw
    try:
        features = extractor([wave, long], sampling_rate=extractor.sampling_rate)
    finally:
        np.random.choice, np.random.randint = choice, randint
    n = 3 if fusion else 1
    given = starts[:n] if features["is_longer"][0][0] else [0] * n
    return (
        np.asarray(features["input_features"][0], np.float32)[None],
        np.array([features["is_longer"][0]]),
        np.array([given]),
    )
