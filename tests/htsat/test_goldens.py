"""From waveform to every output, stage by stage, against the originals' frozen outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from loopjax.htsat.frontend import log_mel
from scripts.goldens.synthetic import SEEDS, clip, sample
from tests.htsat import tolerances
from tests.htsat.cases import encoder, everything, golden

OUR_NAMES = {
    "clipwise_output": "clipwise",
    "framewise_output": "framewise",
    "fine_grained_embedding": "fine_grained",
}
STAGES = ("bn0", "patch_embed", "stage0", "stage1", "stage2", "stage3", "norm")
OUTPUTS = ("embedding", "projection", "clipwise", "framewise", "fine_grained")


def wave_of(name: str, clip_name: str) -> np.ndarray:
    """The clip that the golden file was made from."""
    seconds = float(clip_name.removesuffix(" s"))
    rate = encoder(name).sample_rate_hz
    return clip(round(seconds * rate), rate_hz=rate)


@pytest.mark.parametrize("name", SEEDS)
def test_every_stage_and_output_equals_the_original(name):
    stored, model = golden(name), encoder(name)
    for clip_name in sorted({key.split("/")[0] for key in stored}):
        wave = wave_of(name, clip_name)
        starts = stored[f"{clip_name}/starts"][None]
        rate = model.sample_rate_hz
        mel, longer = model.front_end(wave[None], np.array([wave.size]), rate, crop_starts=starts)
        assert bool(longer[0]) == bool(stored[f"{clip_name}/longer"].item())
        ours = everything(name, mel, longer) | {"mel": np.asarray(mel)}
        if model.mel_config.filling == "repeat_frames":  # the original's frames, not yet repeated
            ours["mel"] = log_mel(jnp.asarray(wave), jnp.asarray(wave.size), model.mel_config)
        for key in stored:
            other, tap = key.split("/")
            if other == clip_name and tap not in ("starts", "longer"):
                tap = OUR_NAMES.get(tap, tap)
                compare(f"{name} {clip_name}", tap, ours[tap], stored[key])


def compare(where: str, tap: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Applies the tolerance of a stage to a whole array or to its frozen sample."""
    ours = ours.ravel() if ours.size == theirs.size else sample(ours)
    theirs = theirs.ravel()
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs)
    if tap == "mel":
        assert difference.max() <= tolerances.MEL_DB_MAX, where
        assert difference.mean() <= tolerances.MEL_DB_MEAN, where
        return
    limit = tolerances.STAGES_FROM_WAVE if tap in STAGES else tolerances.OUTPUTS_FROM_WAVE
    assert difference.max() <= limit * np.abs(theirs).max(), f"{where} {tap}"
    if tap in ("embedding", "projection"):
        norm = np.linalg.norm(theirs)
        assert difference.max() <= tolerances.PIPELINE_OVER_NORM * norm, f"{where} {tap}"
        assert ours @ theirs >= tolerances.PIPELINE_COSINE * norm * np.linalg.norm(ours)


def test_goldens_tell_clips_apart():
    """A pipeline that ignored its input could not pass: the frozen embeddings differ."""
    for name in ("laion_mini_fused", "hf_mini_unfused"):
        stored = golden(name)
        one, other = (stored[f"{c}/embedding"].ravel() for c in ("2 s", "23 s"))
        assert np.abs(one - other).max() > 100 * tolerances.PIPELINE_OVER_NORM * np.linalg.norm(one)
