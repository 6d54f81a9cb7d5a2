"""The text tower against transformers, on random weights, with every key used."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from loopjax.convert.encoder import convert_encoder
from loopjax.encoders import storage
from loopjax.encoders.load import load_text_encoder
from loopjax.errors import UserError
from loopjax.text.tokens import read_tokenizer, tokenize
from scripts.fuzz.torch_files import write_torch
from tests.htsat.cases import checkpoint
from tests.text.stories import TEXTS, write_tokenizer

PARITY = 1e-5
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320,
    "intermediate_size": 48, "max_position_embeddings": 20, "projection_dim": 24,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    monkeypatch.setattr(
        storage, "probe_embeddings", lambda e: np.zeros((2, e.embedding_dim), np.float32)
    )


def text_model(**sizes):
    """transformers' text tower with its projection; nothing is left at an identity default."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.ClapTextConfig(**sizes)
    model = transformers.ClapTextModelWithProjection(config).eval()
    for name, value in model.named_parameters():
        if value.ndim == 1:
            value.data = torch.randn_like(value) * 0.2 + ("LayerNorm.weight" in name)
        else:
            value.data *= 4
    return model


def as_hf(model) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def as_laion(tensors) -> dict[str, np.ndarray]:
    """The same tower in LAION's names, with a text MLP of the training loss beside it."""
    names = {"text_model.": "text_branch.", "linear1": "0", "linear2": "2"}
    found = {}
    for name, value in tensors.items():
        for theirs, laions in names.items():
            name = name.replace(theirs, laions)
        found[name] = value
    return found | {"text_transform.sequential.0.weight": np.ones((24, 24), np.float32)}


def write_hf(folder, tensors, sizes):
    folder.mkdir()
    scale = {"logit_scale_a": np.float32(2.5), "logit_scale_t": np.float32(2.6)}
    tower = checkpoint("hf_mini_fused") | tensors | scale
    save_file({k: np.ascontiguousarray(v) for k, v in tower.items()}, folder / "model.safetensors")
    config = {"text_config": sizes, "audio_config": {"enable_fusion": True}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def theirs(model, ids) -> np.ndarray:
    import torch

    with torch.no_grad():
        mask = torch.tensor(ids != 1)
        found = model(torch.tensor(ids, dtype=torch.long), attention_mask=mask).text_embeds
    found = found.numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_texts_land_where_transformers_puts_them(tmp_path):
    model = text_model(**SMALL)
    source = write_hf(tmp_path / "hf", as_hf(model), SMALL)
    write_tokenizer(source)
    done = convert_encoder(source, tmp_path / "out")
    assert done.has_text
    assert not [key for key in done.ignored if key.startswith("text_")]
    encoder = load_text_encoder(tmp_path / "out")
    ids = tokenize(read_tokenizer(source), TEXTS, 18, 1)
    assert {int(n) for n in (ids != 1).sum(axis=1)} & {18}  # one text is cut
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs(model, ids), atol=PARITY)
    assert encoder.logit_scale == pytest.approx(np.exp(2.5))
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, encoder.embed(TEXTS), atol=1e-6)  # padding does nothing


def test_laions_names_and_epsilon(tmp_path):
    sizes = SMALL | {"hidden_size": 128, "num_attention_heads": 2, "layer_norm_eps": 1e-5}
    model = text_model(**sizes)
    scale = {"logit_scale_a": np.float32(2.5), "logit_scale_t": np.float32(2.6)}
    tensors = checkpoint("laion_mini_fused") | as_laion(as_hf(model)) | scale
    state = {f"module.{name}": np.asarray(value) for name, value in tensors.items()}
    source = write_torch(tmp_path / "clap.pt", {"state_dict": state})
    write_tokenizer(tmp_path, single=False)
    done = convert_encoder(source, tmp_path / "out")
    kept = {
        key.removeprefix("state_dict.") for key in done.ignored if "text" in key or "scale" in key
    }
    assert kept == {"text_transform.sequential.0.weight", "logit_scale_t"}
    ids = tokenize(read_tokenizer(tmp_path), TEXTS, 18, 1)
    found = load_text_encoder(tmp_path / "out").embed(TEXTS)
    np.testing.assert_allclose(found, theirs(model, ids), atol=PARITY)


@pytest.mark.slow
@pytest.mark.parity
def test_the_published_size(tmp_path):
    model = text_model()
    source = write_hf(tmp_path / "hf", as_hf(model), {"layer_norm_eps": 1e-12})
    write_tokenizer(source)
    convert_encoder(source, tmp_path / "out")
    encoder = load_text_encoder(tmp_path / "out")
    assert (encoder.config.depth, encoder.config.max_tokens) == (12, 512)
    ids = tokenize(read_tokenizer(source), TEXTS, 512, 1)
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs(model, ids), atol=PARITY)


@pytest.mark.parametrize("single", [True, False])
def test_tokens_are_transformers(tmp_path, single):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path / "a", single=False)
    files = {f"{n}_file": str(tmp_path / "a" / f"{n}.txt") for n in ("merges",)}
    files["vocab_file"] = str(tmp_path / "a" / "vocab.json")
    reference = transformers.RobertaTokenizer.from_pretrained(tmp_path / "a", **files)
    if single:
        write_tokenizer(tmp_path / "a")
    ours = read_tokenizer(tmp_path / "a")
    for text in (*TEXTS, " leading", "<mask> & emoji 🎸"):
        wanted = reference(text, truncation=True, max_length=20)["input_ids"]
        (row,) = tokenize(ours, [text], 20, 1)
        assert row[row != 1].tolist() == wanted, text


@pytest.fixture(scope="module")
def tensors():
    return as_hf(text_model(**SMALL))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("text_model.pooler.dense.bias"), "missing in the file: text_model.pooler"),
        (lambda t: t.update({"text_model.extra": np.ones(2)}), "not used: text_model.extra"),
        (lambda t: t.update({"text_projection.linear3.bias": np.ones(2)}), "not used: text_proj"),
        (
            lambda t: t.update({"text_projection.linear1.weight": np.ones((24, 31), np.float32)}),
            r"wrong shape: text_projection.linear1.weight gives \(31, 24\)",
        ),
        (
            lambda t: t.update({"text_model.embeddings.position_ids": np.ones((1, 20), np.int64)}),
            "unusual constant: text_model.embeddings.position_ids",
        ),
        (
            lambda t: t["text_model.encoder.layer.1.output.dense.bias"].fill(np.nan),
            "not a number: text_model.encoder.layer.1.output.dense.bias",
        ),
    ],
)
def test_one_wrong_key_is_named(tmp_path, tensors, change, sentence):
    changed = {name: value.copy() for name, value in tensors.items()}
    change(changed)
    with pytest.raises(UserError, match=sentence):
        convert_encoder(write_hf(tmp_path / "hf", changed, SMALL), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_text_tower_is_left_out(tmp_path, tensors):
    types = {"text_model.embeddings.token_type_embeddings.weight": np.ones((2, 32), np.float32)}
    done = convert_encoder(write_hf(tmp_path / "hf", tensors | types, SMALL), tmp_path / "out")
    assert not done.has_text
    with pytest.raises(UserError, match="knows sounds only"):
        load_text_encoder(tmp_path / "out")


def test_without_a_tokenizer_it_says_where_to_put_one(tmp_path, tensors):
    done = convert_encoder(write_hf(tmp_path / "hf", tensors, SMALL), tmp_path / "out")
    assert "put the one of the text tower" in "".join(done.notes)
    with pytest.raises(UserError, match="came without a tokenizer"):
        load_text_encoder(tmp_path / "out")
    write_tokenizer(tmp_path / "out" / "text")
    encoder = load_text_encoder(tmp_path / "out")
    assert encoder.embed(["kick"]).shape == (1, 24)
    with pytest.raises(UserError, match="needs words"):
        encoder.embed([" "])
    (tmp_path / "out" / "text" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_text_encoder(tmp_path / "out")


def test_a_tokenizer_of_another_tower_is_named(tmp_path):
    sizes = SMALL | {"vocab_size": 262}
    source = write_hf(tmp_path / "hf", as_hf(text_model(**sizes)), sizes)
    write_tokenizer(source)
    convert_encoder(source, tmp_path / "out")
    with pytest.raises(UserError, match="the text tower knows 262: they do not belong together"):
        load_text_encoder(tmp_path / "out").embed(TEXTS)


def test_a_damaged_tower_is_named(tmp_path, tensors):
    convert_encoder(write_hf(tmp_path / "hf", tensors, SMALL), tmp_path / "out")
    write_tokenizer(tmp_path / "out" / "text")
    record = tmp_path / "out" / "text" / "config.json"
    text = record.read_text()
    for old, new in (('"heads": 4', '"heads": 5'), ('"width": 32', '"width": "a"'), ('"', "")):
        record.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match="text is damaged"):
            load_text_encoder(tmp_path / "out")


def test_the_bundled_encoder_knows_no_texts():
    with pytest.raises(UserError, match="encoder loopjax-nano knows sounds only, no texts"):
        load_text_encoder("loopjax-nano")
