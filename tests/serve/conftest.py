import io
import shutil

import numpy as np
import pytest
import soundfile

from loopjax import bundled
from loopjax.cli import main


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with loops, their store and a model."""
    folder = tmp_path_factory.mktemp("serve")
    for kind in ("bass", "guitar"):
        (folder / "loops" / kind).mkdir(parents=True)
        for source in sorted(bundled.folder("demo").glob(f"{kind}_00*.ogg")):
            shutil.copy(source, folder / "loops" / kind)
    (folder / "loops" / "broken.wav").write_bytes(b"RIFF no audio")
    store, model = str(folder / "emb"), str(folder / "model")
    embed = ["embed", str(folder / "loops"), "-o", store, "--encoder", "log-mel-statistics"]
    assert main(embed) == 3
    assert main(["fit", store, "-o", model, "--detector", "knn"]) == 0
    return folder


def tone(seconds=1.0, rate_hz=32_000):
    file = io.BytesIO()
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * 3000 * t), rate_hz, "PCM_16", format="WAV")
    return file.getvalue()
