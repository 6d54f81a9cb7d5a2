"""Live comparison with PyTorch: transformers' CLAP with fully random weights, and torch.save."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
from flax import nnx  # noqa: E402

from loopjax.convert.mapping import map_checkpoint  # noqa: E402
from loopjax.convert.torch_zip import TorchZip  # noqa: E402
from loopjax.encoders.encoder import HtsatEncoder  # noqa: E402
from scripts.goldens import synthetic  # noqa: E402
from tests.htsat import tolerances  # noqa: E402
from tests.htsat.cases import lazy  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SIZES = {
    "tiny": {},
    "base": {
        "patch_embeds_hidden_size": 128,
        "hidden_size": 1024,
        "depths": [2, 2, 12, 2],
    },
}
STAGES = ("bn0", "patch_embed", "stage0", "stage1", "stage2", "stage3", "norm")


def original(size: str, fusion: bool):
    """A transformers model whose every weight and statistic is random."""
    config = transformers.ClapAudioConfig(enable_fusion=fusion, **SIZES[size])
    model = transformers.ClapAudioModelWithProjection(config).eval()
    state = model.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if synthetic.is_learned(k)}
    for key, value in synthetic.weights(shapes, seed=11).items():
        state[key] = torch.tensor(value)
    model.load_state_dict(state, strict=True)
    return model


def stages(model, mel, longer) -> dict[str, np.ndarray]:
    """Every stage, the embedding and the normalized projection of the original."""
    network, seen = model.audio_model.audio_encoder, {}

    def keep(name):
        def hook(module, inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            seen[name] = value.detach().numpy()

        return hook

    parts = {"bn0": network.batch_norm, "patch_embed": network.patch_embed, "norm": network.norm}
    parts |= {f"stage{i}": layer for i, layer in enumerate(network.layers)}
    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    with torch.no_grad():
        features, flags = torch.tensor(mel), torch.tensor(longer)[:, None]
        seen["embedding"] = model.audio_model(features, is_longer=flags).pooler_output.numpy()
        projected = model(input_features=features, is_longer=flags).audio_embeds
    for handle in handles:
        handle.remove()
    seen["projection"] = torch.nn.functional.normalize(projected, dim=-1).numpy()
    return seen | {"bn0": seen["bn0"].transpose(0, 3, 2, 1)}


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_stage_by_stage_and_from_the_waveform(size, fusion):
    theirs = original(size, fusion)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    mapped = map_checkpoint(lazy(state))
    model = HtsatEncoder(mapped.config, mapped.front_end, mapped.weights, encoder_id="live")

    def run(params, mel, longer):
        merged, taps = nnx.merge(model._graphdef, params), {}
        with jax.default_matmul_precision("highest"):
            merged.latent(mel, longer, taps=taps)
            return taps | merged.outputs(mel, longer)

    extractor = transformers.ClapFeatureExtractor(
        frequency_min=50, truncation="fusion" if fusion else "rand_trunc"
    )
    compiled = jax.jit(run)
    for n_samples in (96000, 480000, 480240, 1104000):
        wave = synthetic.clip(n_samples, seed=2)
        mel, longer, starts = extracted(extractor, wave, fusion)
        ours = {k: np.asarray(v) for k, v in compiled(model.params, mel, longer).items()}
        check_same_mel(ours, stages(theirs, mel, longer))
        views, flag = model.front_end(wave[None], np.array([n_samples]), crop_starts=starts)
        assert bool(flag[0]) == bool(longer[0])
        check_from_wave(np.asarray(views), mel, np.asarray(model.encode(views, flag)), ours)


def extracted(extractor, wave, fusion):
    """Their features of one clip, with the crop positions that were drawn."""
    starts, choice, randint = [], np.random.choice, np.random.randint

    def draw(span):
        starts.append(int(choice(span)))
        return starts[-1]

    def draw_start(low, high):
        starts.append(int(randint(low, high)))
        return starts[-1]

    np.random.seed(0)  # noqa: NPY002 (theirs is the global generator)
    np.random.choice, np.random.randint = draw, draw_start
    try:
        mel, longer = extractor._get_input_mel(
            wave, 480000, "fusion" if fusion else "rand_trunc", "repeatpad"
        )
    finally:
        np.random.choice, np.random.randint = choice, randint
    starts = np.array([starts or [0, 0, 0] if fusion else starts or [0]])
    return np.asarray(mel, np.float32)[None], np.array([longer]), starts


def check_same_mel(ours: dict, theirs: dict) -> None:
    for name in STAGES:
        limit = tolerances.SAME_MEL * np.abs(theirs[name]).max()
        assert np.abs(ours[name] - theirs[name]).max() <= limit, name
    for name in ("embedding", "projection"):
        limit = tolerances.SAME_MEL_OUTPUTS * np.abs(theirs[name]).max()
        assert np.abs(ours[name] - theirs[name]).max() <= limit, name
    norm = np.linalg.norm(theirs["embedding"])
    assert (
        np.abs(ours["embedding"] - theirs["embedding"]).max()
        <= tolerances.EMBEDDING_OVER_NORM * norm
    )


def check_from_wave(views, mel, embedding, same_mel: dict) -> None:
    assert np.abs(views - mel).max() <= tolerances.MEL_DB_MAX
    assert np.abs(views - mel).mean() <= tolerances.MEL_DB_MEAN
    expected = same_mel["embedding"]
    norm = np.linalg.norm(expected)
    assert np.abs(embedding - expected).max() <= tolerances.PIPELINE_OVER_NORM * norm
    cosine = (embedding * expected).sum() / norm / np.linalg.norm(embedding)
    assert cosine >= tolerances.PIPELINE_COSINE


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_that_pytorch_wrote(tmp_path, protocol):
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    state = module.state_dict()
    state["transposed"] = torch.randn(4, 6).t()
    state["half"] = torch.randn(3).half()
    state["brain"] = torch.randn(3).bfloat16()
    state["slice"] = torch.arange(10)[3:7]
    content = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "rate": np.float64(1e-3),
        "hyper_parameters": {"center": torch.ones(2)},
    }
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    tensors = TorchZip(tmp_path / "x.pt").tensors()
    tensors = {name.removeprefix("state_dict."): t for name, t in tensors.items()}
    del tensors["hyper_parameters.center"]
    assert {n for n in tensors if not n.startswith("optimizer.")} == set(state)
    for name, value in state.items():
        read = np.asarray(tensors[name].read(), np.float32)
        np.testing.assert_array_equal(read, value.float().numpy())
