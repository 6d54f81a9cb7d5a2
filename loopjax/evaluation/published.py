"""Our values beside published and independently reproduced ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopjax.errors import UserError
from loopjax.evaluation.tables import Estimate, Json, Row, Table
from loopjax.json_files import read_json


@dataclass(frozen=True)
class Measurement:
    """One value of ours, named as in the reference ("threshold_q95", "auroc_P1", ...)."""

    measure: str
    embeddings: str  # "ff", "nff", ...
    detector: str
    value: Estimate  # with its range over seeds
    n_seeds: int


@dataclass(frozen=True)
class PublishedValue:
    """What the reference says of one measure of one detector."""

    published: float | None = None
    published_how: str | None = None  # "figure", "config": where it was read off
    reproduced: Estimate | None = None
    reproduced_seeds: int | None = None


@dataclass(frozen=True)
class PublishedReference:
    """Published values of one experiment.

    Attributes:
        source: where they come from, in a sentence.
        canonical_names: lower-case name of a detector -> its name in `values`.
        values: (measure, embeddings, detector) -> value.
    """

    source: str
    canonical_names: dict[str, str]
    values: dict[tuple[str, str, str], PublishedValue]


def read_published(path: Path) -> PublishedReference:
    """Reads a JSON file of published values (`configs/reference_*.json`).

    It holds `source`, `detectors` (name -> accepted other names) and `entries` (measure,
    embeddings, detector and any of published, published_how, reproduced, reproduced_low,
    reproduced_high, reproduced_seeds).

    Raises:
        UserError: not readable, or something else.
    """
    try:
        content = read_json(path)
        return PublishedReference(
            source=str(content["source"]),
            canonical_names={
                str(alias).lower(): str(name)
                for name, aliases in content["detectors"].items()
                for alias in (name, *aliases)
            },
            values={
                (str(e["measure"]), str(e["embeddings"]), str(e["detector"])): _value(e)
                for e in content["entries"]
            },
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read evaluate.reference {path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"evaluate.reference {path}: expected source, detectors and entries ({error})"
        ) from None


def _value(entry: dict[str, Json]) -> PublishedValue:
    def number(key: str) -> float | None:
        value = entry.get(key)
        return float(value) if isinstance(value, int | float) else None

    reproduced, seeds, how = number("reproduced"), number("reproduced_seeds"), "published_how"
    return PublishedValue(
        published=number("published"),
        published_how=str(entry[how]) if entry.get(how) is not None else None,
        reproduced=None
        if reproduced is None
        else Estimate(reproduced, number("reproduced_low"), number("reproduced_high")),
        reproduced_seeds=None if seeds is None else int(seeds),
    )


def compare_with_published(measured: Sequence[Measurement], reference: PublishedReference) -> Table:
    """Puts published and reproduced values beside ours; what the reference lacks is left out.

    Returns:
        One row per measurement: `ours`, `published`, `reproduced` with its range, `inside_range`
        (ours lies in the reproduction's range over seeds) and `ratio` to the published value.
    """
    rows: list[Row] = []
    for own in measured:
        name = reference.canonical_names.get(own.detector.lower(), own.detector)
        known = reference.values.get((own.measure, own.embeddings, name))
        if known is None or (known.published is None and known.reproduced is None):
            continue
        inside = None
        if known.reproduced and known.reproduced.low is not None:
            high = known.reproduced.high
            inside = high is not None and known.reproduced.low <= own.value.value <= high
        rows.append(
            {
                "measure": own.measure,
                "embeddings": own.embeddings,
                "detector": own.detector,
                "ours": own.value,
                "n_seeds": own.n_seeds,
                "published": known.published,
                "published_how": known.published_how,
                "reproduced": known.reproduced,
                "reproduced_seeds": known.reproduced_seeds,
                "ratio": own.value.value / known.published if known.published else None,
                "inside_range": inside,
            }
        )
    return Table("Ours beside the published values", reference.source, tuple(rows))
