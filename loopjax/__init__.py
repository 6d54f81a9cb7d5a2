"""Find what is normal and what is anomalous in large corpora of musical loops.

The public names stand in `__init__.pyi`; each is imported on first use, so that `import loopjax`
stays free of jax.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
