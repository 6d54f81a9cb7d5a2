"""`loopjax doctor` names what is there, what is missing, and the remedy."""

import importlib.util

from loopjax import doctor


def found(topic):
    return next(finding for finding in doctor.diagnose() if finding.topic == topic)


def test_every_extra_that_users_install_is_looked_for(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else real(name)
    )
    topics = {finding.topic: finding.text for finding in doctor.diagnose()}
    assert "pip install 'loopjax[codecs]'" in topics["[codecs]"]
    assert topics["[report]"].startswith("installed")
    assert "weights" in topics["encoder"]


def test_a_cache_that_others_can_write_is_advised_against(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = found("cache")
    assert fresh.text.startswith(str(tmp_path))
    for folder in (tmp_path / "loopjax" / "jax").iterdir():
        folder.chmod(0o777)
    assert "writable for you alone" in found("cache").advice


def test_few_open_files_are_advised_against(monkeypatch):
    monkeypatch.setattr(doctor, "MIN_OPEN_FILES", 10**9)
    assert "ulimit -n" in found("limits").advice
