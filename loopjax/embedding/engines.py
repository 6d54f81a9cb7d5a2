"""Embedding as a plain function of batches, for engines that bring their own workers.

Ray Data, Apache Beam, Spark and the like hand rows over and take rows back; see the page on engines
in docs/. An object of this class is made once per worker, and is what `map_batches` of Ray calls.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import numpy as np

from loopjax.audio.loop import AudioInfo, DecodeError, Loop
from loopjax.audio.process import DecoderProcess
from loopjax.config import EmbedConfig
from loopjax.embedding.encode import BatchEncoder
from loopjax.embedding.settings import as_encoder, check_config, decode_options, space_of
from loopjax.encoders.protocol import Encoder
from loopjax.errors import UserError

COLUMNS = ("bytes", "path")  # of which a batch must have one


@dataclass(frozen=True)
class _Sound:
    samples: np.ndarray  # int16 or float32 [n]
    info: AudioInfo


class EmbedBatches:
    """Batches of audio in, the same batches with embeddings out.

    The embedding of a loop is the one it has in a store, whatever else is in its batch. A file that
    cannot be read is a row with a reason; a codec that crashes costs that row alone.
    """

    def __init__(
        self, encoder: Encoder | str | Path = "loopjax-nano", config: EmbedConfig | None = None
    ):
        """Loads the encoder onto the devices that this process sees.

        Args:
            encoder: a name, a folder, or one that is loaded.
            config: how audio becomes embeddings; `workers` decoding processes, by default one.

        Raises:
            UserError: no such encoder, or an option has no meaning.
        """
        config = config or EmbedConfig()
        check_config(config)
        encoder = as_encoder(encoder, config)
        self._engine = BatchEncoder[int](encoder, space_of(encoder, config), config)
        self._dim = encoder.embedding_dim
        options = decode_options(encoder, config)
        n_decoders = config.workers or 1
        self._threads = ThreadPoolExecutor(n_decoders)
        self._all = [DecoderProcess(options, config.decode_timeout_s) for _ in range(n_decoders)]
        self._free: SimpleQueue[DecoderProcess] = SimpleQueue()
        for decoder in self._all:
            self._free.put(decoder)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Embeds one batch.

        Args:
            batch: columns of n values each, one of them `bytes` (of audio files) or `path`.

        Returns:
            All of these, and `embedding` float32 [n, D], NaN where there is none; `sha256` of the
            audio and `error`, the reason why there is no embedding, both text and else empty.

        Raises:
            UserError: no column of audio.
        """
        name = next((name for name in COLUMNS if name in batch), None)
        if name is None:
            raise UserError(f"the batch has no column {' or '.join(map(repr, COLUMNS))}")
        loops = [_loop(name, value) for value in batch[name]]
        found = list(self._threads.map(self._decode, loops))
        embeddings = np.full((len(found), self._dim), np.nan, np.float32)
        sounds = {at: item for at, item in enumerate(found) if isinstance(item, _Sound)}
        for places in _alike(sounds):
            first = sounds[places[0]]
            batches = self._engine.buckets.batches(
                [sounds[at].samples for at in places],
                first.info.rate_hz,
                [sounds[at].info.sha256 for at in places],
            )
            for full in (*batches, None):
                done = self._engine.finish() if full is None else self._engine.encode(full)
                for one in done:
                    embeddings[places[one.row]] = one.embedding
        return {
            **batch,
            "embedding": embeddings,
            "sha256": np.array([i.info.sha256 if isinstance(i, _Sound) else "" for i in found]),
            "error": np.array(["" if isinstance(item, _Sound) else item for item in found]),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the decoding processes."""
        self._threads.shutdown()
        for decoder in self._all:
            decoder.close()

    def _decode(self, loop: Loop) -> "_Sound | str":
        decoder = self._free.get()
        try:
            reply = decoder.decode(loop)
            samples = np.empty(reply.n_samples, reply.dtype)
            reply.copy_to(samples)
            return _Sound(samples, reply.info)
        except DecodeError as error:
            return f"{error.reason}: {error}"
        finally:
            self._free.put(decoder)


def _loop(column: str, value: Any) -> Loop:
    if column == "bytes":
        content = bytes(value)
        fetch: Callable[[], bytes] | None = lambda: content  # noqa: E731
        return Loop("", "", b"", len(content), 0, "", fetch)
    return Loop("", str(value), os.fsencode(Path(str(value)).absolute()), -1, 0, "")


def _alike(sounds: Mapping[int, _Sound]) -> Sequence[list[int]]:
    """Places of the sounds, those of equal rate and sample format together."""
    groups: dict[tuple[int, str], list[int]] = {}
    for at, sound in sounds.items():
        groups.setdefault((sound.info.rate_hz, sound.samples.dtype.name), []).append(at)
    return list(groups.values())
