"""Named encoders: listing, and what a name means."""

from pathlib import Path

import pytest

from loopjax.encoders import load as named
from loopjax.encoders import published as known
from loopjax.encoders.encoder import random_weights
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.htsat.frontend import LogMelConfig
from loopjax.htsat.model import HtsatConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "loopjax" / "encoders"


def test_every_known_encoder_says_where_what_and_under_which_license():
    rows = named.encoders()
    assert rows[0].name == named.BUNDLED
    assert len({row.name for row in rows}) == len(rows)
    for row in rows[1:]:
        assert row.source.startswith("https://")
        assert row.license
        assert row.dims in (768, 1024)
        assert not row.here
        assert row.sha256 is None or len(row.sha256) == 64
    fused = {row.name for row in rows if row.fusion}
    assert "630k-audioset-fusion-best" in fused
    assert not any("music_audioset" in name for name in fused)  # no fused base exists


def test_short_names_find_the_hub_names():
    assert known.known_encoder("clap-htsat-fused").name == "laion/clap-htsat-fused"
    assert known.known_encoder("zzz") is None


def test_a_file_is_known_by_its_hash_or_by_a_name_of_its_own():
    music = known.known_encoder("music_audioset_epoch_15_esc_90.14")
    assert known.identify("renamed.pt", music.sha256) == (music, [])
    found, notes = known.identify(music.files[0], "0" * 64)
    assert found is None
    assert "is another one" in notes[0]
    found, notes = known.identify("630k-best.pt", "0" * 64)
    assert found.name == "630k-best"
    assert "by its file's name alone" in notes[0]
    assert known.identify("model.safetensors", "0" * 64) == (None, [])


def test_the_list_says_which_encoders_are_pinned():
    pinned = {row.name for row in named.encoders() if row.pinned}
    assert {"loopjax-nano", "laion/clap-htsat-fused", "laion/larger_clap_music"} <= pinned
    assert "630k-best" not in pinned


def test_the_cache_is_checked_against_the_name(cache):
    config = HtsatConfig.nano(width=16, depths=(1, 1), heads=(1, 2))
    folder = named.cache_folder(known.known_encoder("630k-best"))
    front_end, weights = LogMelConfig.clap_fused(), random_weights(config)
    save_encoder(folder, config, front_end, weights, encoder_id="x", about={}, probe=False)
    with pytest.raises(UserError, match="32-wide embeddings, but 630k-best has 768"):
        named.load_encoder("630k-best")


def test_names_that_are_unknown_or_not_fetched():
    with pytest.raises(UserError, match="loopjax encoders pull laion/clap-htsat-fused"):
        named.load_encoder("laion/clap-htsat-fused")
    with pytest.raises(UserError, match="no encoder 'zzz'"):
        named.load_encoder("zzz")


def test_a_folder_called_like_a_known_name_is_not_that_encoder(tmp_path, monkeypatch):
    """What lies in the working directory must not decide what a published name means."""
    monkeypatch.chdir(tmp_path)
    own = Path("loopjax-nano")
    config = HtsatConfig.nano(width=16, depths=(1, 1), heads=(1, 2))
    for folder in (own, Path("clap-htsat-fused")):
        weights = random_weights(config)
        front_end = LogMelConfig.clap_fused()
        save_encoder(folder, config, front_end, weights, encoder_id="own", about={}, probe=False)
    assert named.load_encoder("loopjax-nano").id == "loopjax-nano"
    assert named.load_encoder("./loopjax-nano").id == named.load_encoder(own).id == "own"
    with pytest.raises(UserError, match=r"say \./clap-htsat-fused"):
        named.load_encoder("clap-htsat-fused")
    assert named.load_encoder(tmp_path / "clap-htsat-fused").id == "own"
