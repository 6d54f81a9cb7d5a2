"""A store, the model that ranks it, and what a page asks of both."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from loopjax.audio.decode import Decoded
from loopjax.audio.loop import DecodeError, Loop
from loopjax.audio.preview import Clip, preview_of, preview_options
from loopjax.audio.process import DecoderProcess
from loopjax.embedding.samples import embed_arrays
from loopjax.embedding.settings import decode_options
from loopjax.encoders.load import has_text_tower
from loopjax.encoders.protocol import Encoder
from loopjax.evaluation.tables import Evaluation
from loopjax.library.similar import JointSpace
from loopjax.model import Model
from loopjax.report.content import page_content
from loopjax.report.data import Plain, page_data, sound_json
from loopjax.report.facts import facts_of_scores
from loopjax.report.lists import Curated, Reason, make_lists, reason_text
from loopjax.report.loops import PageLoops
from loopjax.report.ranking import RankedRows, ranking_of
from loopjax.report.render import render
from loopjax.report.sound import Sound, sound_of
from loopjax.store.blocks import open_rows
from loopjax.store.failures import read_failures
from loopjax.store.schema import FAILURE_SCHEMA

N_ANSWERS = 10
MAX_HELD = 300  # sounds, some 30 MB
DECODE_TIMEOUT_S = 30.0
MAX_EXPLAINED_S = 30.0  # some 6 s of computing
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; img-src data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
SCRIPTS = ("data.js", "live.js", "player.js", "list.js", "marks.js", "map.js", "page.js")


class Live:
    """Answers questions about a store, one at a time; files are decoded in child processes."""

    def __init__(
        self,
        store: Path,
        model: Model,
        encoder: Encoder,
        curated: Curated,
        reason_of: Callable[[Model, Decoded, Encoder], Reason],
    ):
        """Scores the store and makes the page.

        Args:
            store: folder of `loopjax embed` or of a run, or a file of embeddings.
            model: that ranks it.
            encoder: the model's, see `Model.load_encoder`.
            curated: copies and mislabelled loops to list.
            reason_of: tells where a loop stands out.

        Raises:
            UserError: no such store, or of another space than the model's.
        """
        self._store, self._model = store, model
        self._encoder, self._curated, self._reason_of = encoder, curated, reason_of
        self._ranking = ranking_of(model.score(str(store)), str(store))
        rows = open_rows(store)
        self._metadata = rows.metadata
        self._joint: JointSpace | None = None  # loaded when a text comes
        self._rows = RankedRows(self._ranking, rows)
        self._loops = PageLoops(self._ranking, self._rows, [store.parent])
        self._loops.place()
        self._shown = self._loops.shown_rows()
        self._place = {row: i for i, row in enumerate(self._shown.tolist())}
        options = decode_options(self._encoder, model.embed_config)
        self._decoder = DecoderProcess(options, DECODE_TIMEOUT_S)
        self._preview_decoder = DecoderProcess(preview_options(), DECODE_TIMEOUT_S)
        self._asking, self._hearing = threading.Lock(), threading.Lock()
        self._held: OrderedDict[int, Sound] = OrderedDict()

    def page(self) -> str:
        """The page as HTML."""
        lists = make_lists(self._loops, self._curated, {})
        folder = self._store / "embeddings"
        folder = folder if folder.is_dir() else self._store
        failures = read_failures(folder) if folder.is_dir() else FAILURE_SCHEMA.empty_table()
        page = page_content(
            self._loops,
            lists,
            facts_of_scores(self._ranking.detector, self._encoder.id, self._store),
            Evaluation(()),
            failures,
            [],
            f"{self._store.name}, live",
            [*self._curated.notes, *self._loops.notes],
            self._takes_texts(),
        )
        data = page_data(self._loops, lists, Path.cwd(), "none", "")
        return render(page, data, POLICY, SCRIPTS)

    def ids(self) -> list[str]:
        """Of the loops of the page."""
        return self._ranking.ids.take(pa.array(self._shown)).to_pylist()

    def paths(self) -> list[str]:
        """Of the loops of the page, for people."""
        return self._ranking.paths.take(pa.array(self._shown)).to_pylist()

    def require(self, i: int) -> None:
        """Refuses a number of no loop of the page.

        Raises:
            IndexError: there is no such loop.
        """
        self._row(i)

    def sound(self, i: int) -> Plain:
        """Outline and spectrum of a loop of the page.

        Raises:
            IndexError: there is no such loop.
            DecodeError: it cannot be heard.
        """
        return sound_json(self._heard(i))

    def clip(self, i: int) -> Clip:
        """A playable copy of a loop of the page; see `sound`."""
        clip = self._heard(i).clip
        assert clip is not None
        return clip

    def near(self, i: int) -> Plain:
        """The nearest normal loops of one, and what they say it sounds like.

        Raises:
            IndexError: there is no such loop.
        """
        row = self._row(i)
        with self._asking:
            self._loops.find_near([row])
        near = self._loops.near.get(row, ())
        return {
            "near": [self._place[j] for j in near if j in self._place],
            "why": reason_text(None, self._loops.sounds_like(row)),
        }

    def why(self, i: int) -> Plain:
        """Where a loop stands out.

        Raises:
            IndexError: there is no such loop.
            DecodeError: it cannot be heard.
        """
        row = self._row(i)
        file = self._loops.file(row)
        if file is None:
            raise DecodeError("missing", "its file was not found")
        with self._asking:
            sound = _decoded(self._decoder, _loop_of(file))
            return {"why": self._explained(sound, self._loops.sounds_like(row))}

    def ask(self, content: bytes, name: str) -> Plain:
        """Score, explanation and nearest loops of a file that is not in the store.

        Raises:
            DecodeError: the content is no audio that can be read.
        """
        loop = _loop_of(name.encode("utf-8", "replace"), content)
        with self._asking:
            sound = _decoded(self._decoder, loop)
            rate_hz, config = sound.info.rate_hz, self._model.embed_config
            rows = embed_arrays([sound.samples], self._encoder, rate_hz, config)
            scored = self._model.score_rows(rows)
            near = self._nearest(rows)
            groups = [self._ranking.group_of(row) for row, _ in near[:3]]
            like = max(groups, key=groups.count)
            why = self._explained(sound, like if groups.count(like) > 1 else "")
        with self._hearing:
            heard = preview_of(_decoded(self._preview_decoder, loop))
        score = float(scored.scores[0])
        return {
            "name": name,
            "score": score,
            "percentile": float(self._model.detector.percentile([score])[0]),
            "p": float(scored.p_values[0]) if self._model.is_calibrated else None,
            "is_anomaly": score > float(self._model.detector.threshold_),
            "flags": list(sound.info.flags),
            "why": why,
            "near": self._answers(near),
            "sound": sound_json(sound_of(heard, None)),
        }

    def like_text(self, text: str) -> Plain:
        """The loops that a description fits.

        Raises:
            UserError: the encoder knows no texts.
        """
        with self._asking:
            self._joint = self._joint or JointSpace.of(self._metadata, self._encoder.location)
            vectors = self._joint.text.embed([text])
            count = min(N_ANSWERS, len(self._ranking.ids))
            found, cosines = self._rows.nearest_projected(vectors, self._joint.project, count)
        return self._answers(list(zip(found[0].tolist(), cosines[0].tolist(), strict=True)))

    def interrupt(self) -> None:
        """Breaks off what is being decoded, from any thread; nothing is decoded any more."""
        self._preview_decoder.interrupt()
        self._decoder.interrupt()

    def close(self) -> None:
        """Ends the child processes."""
        self._preview_decoder.close()
        self._decoder.close()

    def _takes_texts(self) -> bool:
        place = self._encoder.location
        return self._encoder.joint_dim is not None and place is not None and has_text_tower(place)

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self._shown):
            raise IndexError(i)
        return int(self._shown[i])

    def _explained(self, sound: Decoded, sounds_like: str) -> str:
        """Where a sound stands out, for which it is embedded 17 times."""
        if sound.info.duration_s > MAX_EXPLAINED_S:
            limit = f"longer than {MAX_EXPLAINED_S:g}\u00a0s: where was not looked for"
            return "; ".join(filter(None, (limit, reason_text(None, sounds_like))))
        return reason_text(self._reason_of(self._model, sound, self._encoder), sounds_like)

    def _heard(self, i: int) -> Sound:
        row = self._row(i)
        file = self._loops.file(row)
        if file is None:
            raise DecodeError("missing", "its file was not found")
        with self._hearing:
            if row not in self._held:
                heard = preview_of(_decoded(self._preview_decoder, _loop_of(file)))
                self._held[row] = sound_of(heard, "quick")
                while len(self._held) > MAX_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(row)
            return self._held[row]

    def _nearest(self, vectors: np.ndarray) -> list[tuple[int, float]]:
        """Rows of the ranking and their cosines, most similar first."""
        count = min(N_ANSWERS, len(self._ranking.ids))
        found, cosines = self._rows.nearest_to(vectors, np.arange(len(self._ranking.ids)), count)
        return list(zip(found[0].tolist(), cosines[0].tolist(), strict=True))

    def _answers(self, near: list[tuple[int, float]]) -> Plain:
        return [
            {"i": self._place[row], "cosine": round(cosine, 4)}
            for row, cosine in near
            if row in self._place
        ]


def _loop_of(path: bytes, content: bytes | None = None) -> Loop:
    """A file, or content under a name that is for people only."""
    fetch = None if content is None else lambda: content
    return Loop("", path.decode("utf-8", "replace"), path, -1, 0, "", fetch)


def _decoded(decoder: DecoderProcess, loop: Loop) -> Decoded:
    reply = decoder.decode(loop)
    samples = np.empty(reply.n_samples, reply.dtype)
    reply.copy_to(samples)
    return Decoded(samples, reply.info)
