"""Find what is normal and what is odd in large corpora of musical loops."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module; resolved on first use so that `import loopjax` stays free of jax.
_HOME = {
    "load_encoder": "loopjax.encoders.load",
    "embed": "loopjax.embedding.corpus",
    "DeepSVDD": "loopjax.detectors",
    "IsolationForest": "loopjax.detectors",
    "PCA": "loopjax.detectors",
    "KNN": "loopjax.detectors",
    "Mahalanobis": "loopjax.detectors",
    "load_detector": "loopjax.detectors",
    "read_embeddings": "loopjax.store.read",
    "load_config": "loopjax.config",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loopjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
