"""Loads the original PyTorch implementations of HTS-AT from checkouts, without their heavy imports.

Only used to freeze golden files; nothing of theirs is copied into this repository.
"""

import ast
import importlib
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchaudio

FEATURES = {"get_mel", "get_audio_features", "int16_to_float32", "float32_to_int16"}


def laion(checkout: Path) -> SimpleNamespace:
    """LAION-CLAP: `network` (a class) and its feature functions, cut out of a file of imports."""
    _package("laion_original", checkout / "src/laion_clap/clap_module")
    _stub_utils("laion_original.utils")
    network = importlib.import_module("laion_original.htsat").HTSAT_Swin_Transformer
    tree = ast.parse((checkout / "src/laion_clap/training/data.py").read_text())
    body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in FEATURES]
    # The checkout calls np.random.integers, which does not exist; published wheels call randint.
    source = ast.unparse(ast.Module(body, [])).replace("np.random.integers", "np.random.randint")
    vision = SimpleNamespace(transforms=SimpleNamespace(Resize=_resize))
    scope = {"np": np, "torch": torch, "torchaudio": torchaudio, "torchvision": vision}
    scope |= {"F": torch.nn.functional, "suppress": None}
    exec(compile(source, "data.py", "exec"), scope)
    return SimpleNamespace(network=network, **{name: scope[name] for name in FEATURES})


def retrocirce(checkout: Path) -> type[torch.nn.Module]:
    """The network of the original HTS-AT."""
    _package("retrocirce_original", checkout / "model")
    _stub_utils("utils")
    old = types.ModuleType("numpy.core.fromnumeric")  # an unused import of NumPy 1 names
    old.clip, old.reshape = np.clip, np.reshape
    sys.modules["numpy.core.fromnumeric"] = old
    return importlib.import_module("retrocirce_original.htsat").HTSAT_Swin_Transformer


def msclap(checkout: Path) -> SimpleNamespace:
    """Microsoft CLAP: `network`, its `config` module and the `projection` class."""
    _package("msclap_original", checkout / "msclap/models")
    sys.modules.setdefault("transformers", types.ModuleType("transformers"))
    network = importlib.import_module("msclap_original.htsat").HTSAT_Swin_Transformer
    config = importlib.import_module("msclap_original.config")
    projection = importlib.import_module("msclap_original.clap").Projection
    return SimpleNamespace(network=network, config=config, projection=projection)


def _package(name: str, folder: Path) -> None:
    """Makes a folder importable under a name without running its `__init__`."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def _stub_utils(name: str) -> None:
    """The two helpers HTS-AT takes from a `utils` module full of unrelated imports."""
    module = types.ModuleType(name)
    module.interpolate = lambda x, ratio: x.repeat_interleave(ratio, dim=1)
    module.do_mixup = None  # training only
    sys.modules[name] = module


def _resize(size: list[int]):
    """`torchvision.transforms.Resize` on a tensor, as up to 0.16: bilinear without antialias.

    The fused towers were trained with such a version; newer ones switch antialias on.
    """
    return lambda image: torch.nn.functional.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=False
    )[0]
