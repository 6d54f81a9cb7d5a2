"""The trained encoder as a folder like any other, with where it comes from."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loopjax.audio.loop import Loop
from loopjax.audio.sources.source import Source
from loopjax.config import EmbedConfig, to_dict
from loopjax.config.finetuning import FinetuneConfig
from loopjax.embedding.ordered import LoopFeatures, OrderedReader
from loopjax.embedding.read import make_decoders
from loopjax.encoders.encoder import HtsatEncoder
from loopjax.encoders.storage import save_encoder
from loopjax.errors import UserError
from loopjax.finetuning.batches import Loops
from loopjax.finetuning.loop import Trained

STATISTICS_LOOPS = 512  # that the statistics of the mel bands are measured on


def export_encoder(
    folder: Path,
    config: FinetuneConfig,
    parent: HtsatEncoder,
    parent_record: Mapping[str, Any],
    trained: Trained,
    loops: Loops,
) -> None:
    """Writes the encoder folder; the same training writes the same bytes of weights.

    Args:
        folder: where.
        config: all settings; they become part of the record.
        parent: the encoder that was trained further.
        parent_record: its `config.json`; its license goes on to the new encoder.
        trained: the weights.
        loops: those that trained, for their number.

    Raises:
        UserError: the folder holds something else.
        ModelCheckError: the encoder gives embeddings that are no numbers.
        WriteError: it cannot be written.
    """
    about = dict(parent_record.get("about", {}))
    save_encoder(
        folder,
        parent.config,
        parent.mel_config,
        trained.weights,
        encoder_id=config.name,
        about={
            "license": about.get("license", "that of the loops it was trained on"),
            "assumptions": list(parent.assumptions),
            "parent": {
                "id": parent.id,
                "weights_sha256": parent.weights_sha256,
                "source": about.get("source", ""),
            },
            "finetuning": to_dict(config),
            "best_step": trained.best_step,
            "n_loops": len(loops.train),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
        },
    )


def with_corpus_statistics(
    parent: HtsatEncoder, source: Source, embed: EmbedConfig, loops: Sequence[Loop], seed: int
) -> HtsatEncoder:
    """The encoder with the mean and variance of each mel band measured on a sample of loops.

    Raises:
        UserError: none of them can be read.
    """
    order = np.random.default_rng([seed, 3]).permutation(len(loops))[:STATISTICS_LOOPS]
    reader, found = OrderedReader(parent, embed), []
    read = reader.read([loops[i] for i in order], make_decoders(source, parent, embed))
    for item in islice(read, len(order)):
        if isinstance(item, LoopFeatures):
            found.append((item.mel[0].mean(axis=0), np.square(item.mel[0]).mean(axis=0)))
    if not found:
        raise UserError("none of the loops can be read; `loopjax embed` says why")
    mean, square = np.mean(np.array(found, np.float64), axis=0)
    weights = parent.weights() | {
        "bn0.mean": mean.astype(np.float32),
        "bn0.var": np.maximum(square - np.square(mean), 1e-3).astype(np.float32),
    }
    return HtsatEncoder(
        parent.config,
        parent.mel_config,
        weights,
        encoder_id=parent.id,
        precision=parent.precision,
        location=parent.location,
        assumptions=parent.assumptions,
    )
