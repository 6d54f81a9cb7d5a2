"""What a page tells of a run: the settings of run.json that a reader asks for first."""

import json
from dataclasses import dataclass
from pathlib import Path

from loopjax.errors import UserError
from loopjax.evaluation.tables import Json
from loopjax.json_files import read_json


@dataclass(frozen=True)
class Fact:
    """One setting."""

    label: str
    value: str


@dataclass(frozen=True)
class RunFacts:
    """What run.json says; everything is empty where there is no run.json.

    Attributes:
        name: of the experiment.
        encoder: its name.
        primary: the detector that ranks.
        embeddings: where the embeddings lie, if the experiment names them.
        shown: the settings to list.
        text: the whole file, indented.
    """

    name: str = ""
    encoder: str = ""
    primary: str = ""
    embeddings: str = ""
    shown: tuple[Fact, ...] = ()
    text: str = ""


def read_facts(path: Path) -> RunFacts:
    """Reads run.json, if it is there.

    Raises:
        UserError: not readable as a JSON object.
    """
    run = read_object(path)
    config = _object(run.get("config"))
    data, embed = _object(config.get("data")), _object(config.get("embed"))
    name, encoder = _text(config.get("name")), _text(embed.get("encoder"))
    found = {
        "Name": name,
        "Started": _text(run.get("started")),
        "Command": _text(run.get("command")),
        "Encoder": encoder,
        "Detector": _text(config.get("primary")),
        "Seeds": _text(run.get("seeds")),
        "Devices": _text(run.get("devices")),
        "Versions": _text(run.get("versions")),
    }
    return RunFacts(
        name=name,
        encoder=encoder,
        primary=_text(config.get("primary")),
        embeddings=_text(data.get("embeddings")),
        shown=tuple(Fact(label, value) for label, value in found.items() if value),
        text=json.dumps(run, indent=2, ensure_ascii=False) if run else "",
    )


def facts_of_scores(detector: str, encoder: str, store: Path | None) -> RunFacts:
    """What is known of scores without a run.json.

    Args:
        detector: that ranks; "" if nobody knows.
        encoder: of the embeddings; "" if nobody knows.
        store: where these lie.
    """
    found = {"Detector": detector, "Encoder": encoder, "Embeddings": str(store or "")}
    shown = tuple(Fact(label, value) for label, value in found.items() if value)
    return RunFacts(encoder=encoder, primary=detector, shown=shown)


def read_object(path: Path) -> dict[str, Json]:
    """Reads a JSON object; an empty one where there is no such file.

    Raises:
        UserError: not readable as a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is unreadable: {error}") from None


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _text(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)
