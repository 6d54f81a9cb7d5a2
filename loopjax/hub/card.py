"""What a folder is, and the card that says so on the Hub, written from the folder's own record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loopjax.errors import UserError
from loopjax.io.hub_names import HubName
from loopjax.json_files import read_json
from loopjax.store.parquet import open_footer
from loopjax.store.read import part_files
from loopjax.store.schema import read_metadata

Kind = Literal["encoder", "model", "store"]
ENCODER_FORMAT, DETECTOR_FORMAT = "loopjax-encoder-", "loopjax-detector-"


@dataclass(frozen=True)
class Described:
    """A folder that can be shared.

    Attributes:
        kind: what it is.
        facts: what its record says, for people.
        license: as its record states it; "" where nobody has said.
    """

    kind: Kind
    facts: Mapping[str, str]
    license: str = ""


def describe(folder: Path) -> Described:
    """Reads the record of an encoder, a model or a store.

    Raises:
        UserError: it is none of these, or damaged.
    """
    if part_files(folder):
        return _store(folder)
    try:
        record = read_json(folder / "config.json")
        form = record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is neither an encoder nor a model nor a store") from None
    try:
        if form.startswith(ENCODER_FORMAT):
            return _encoder(record)
        if form.startswith(DETECTOR_FORMAT):
            return _model(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: damaged ({error!r})") from None
    raise UserError(f"{folder / 'config.json'}: unknown format {form!r}")


def card(described: Described, name: HubName, files: Mapping[str, int]) -> str:
    """The README of a repository.

    Args:
        described: what is shared.
        name: the repository.
        files: their sizes in bytes.
    """
    head = [
        "library_name: loopjax",
        "tags: [loopjax, audio, music, anomaly-detection]",
        f"license: {_spdx(described.license)}",
    ]
    if described.kind == "store":
        head += ["configs:", "- config_name: default", "  data_files: part-*.parquet"]
    rows = dict(described.facts)
    rows["license"] = described.license or "not stated"
    rows["size"] = f"{sum(files.values()) / 1e6:.1f} MB in {len(files)} files"
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items() if value)
    return _TEMPLATE.format(
        head="\n".join(head),
        repository=name.repository,
        kind=described.kind,
        article="An" if described.kind == "encoder" else "A",
        table=table,
        name=name,
        use=_USE[described.kind].format(name=name),
    )


_TEMPLATE = """\
---
{head}
---
# {repository}

{article} {kind} of loopjax: what is normal and what is anomalous in corpora of musical loops.

| | |
| --- | --- |
{table}

```bash
pip install "loopjax[hub]"
loopjax pull {name}
{use}
```

`loopjax pull` compares every file with its sha256 in `manifest.json`, and prints the name that
means this commit for good.
"""
_USE = {
    "encoder": "loopjax embed my/loops -o out/emb --encoder {name}",
    "model": "loopjax score {name} my/loops -o scores.csv",
    "store": "loopjax fit {name} -o out/model",
}


def _encoder(record: Mapping[str, Any]) -> Described:
    shape, front = record["architecture"], record["front_end"]
    about = record["about"]
    facts = {
        "encoder": record["id"],
        "embedding": f"{shape['width'] * 2 ** (len(shape['depths']) - 1)} numbers",
        "architecture": f"HTS-AT, depths {shape['depths']}, width {shape['width']}",
        "long clips": "fused from four views" if shape["fusion"] else "cropped",
        "audio": f"{front['sample_rate_hz']} Hz, {front['mel_bins']} mel bands",
        "source": str(about.get("source", "")),
        "weights_sha256": record["weights_sha256"],
    }
    if "finetuning" in about:
        parent, settings = about["parent"], about["finetuning"]
        facts["trained from"] = f"{parent['id']}, weights_sha256 {parent['weights_sha256']}"
        facts["trained for"] = (
            f"{settings['objective']['kind']}, {settings['trainable']['what']}: "
            f"{about['best_step']} steps on {about['n_loops']} loops"
        )
    return Described("encoder", facts, str(about.get("license", "")))


def _model(record: Mapping[str, Any]) -> Described:
    section = record.get("model") or {}
    space = section.get("space") or {}
    facts = {
        "detector": record["kind"],
        "name": section.get("name", ""),
        "parameters": json.dumps(record["params"]),
        "threshold": f"{record['fitted']['threshold_']:.6g}",
        "embeddings of": space.get("encoder", "an unknown encoder"),
        "their weights_sha256": space.get("weights_sha256", ""),
        "scores": "higher is more anomalous",
    }
    return Described("model", facts)


def _store(folder: Path) -> Described:
    footers = [open_footer(part) for part in part_files(folder)]
    metadata = read_metadata(footers[0].schema)
    facts = {
        "loops": str(sum(footer.n_rows for footer in footers)),
        "encoder": metadata.get("encoder", "unknown"),
        "weights_sha256": metadata.get("weights_sha256", ""),
        "embedding": f"{metadata.get('embedding_dim', '?')} numbers",
        "preprocessing": metadata.get("preprocessing", ""),
        "columns": ", ".join(footers[0].schema.names),
    }
    return Described("store", facts)


def _spdx(text: str) -> str:
    """The identifier that a license's text begins with, in the Hub's spelling."""
    first = text.split(" ", 1)[0].lower()
    return first if first in ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "gpl-3.0") else "other"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
