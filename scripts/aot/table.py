"""The kept table, and what counts as worse."""

from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "table.json"
SLACK = 1.02  # a later jax may choose a few kernels otherwise


def worse(row: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """What got worse than the kept line, in words; seconds of compilation are not judged."""
    found = []
    for key in ("kernels", "mb", "temp_mib", "loops_of_unknown_length"):
        if row[key] > kept[key] * SLACK:
            found.append(f"{key} {row[key]} instead of {kept[key]}")
    if "clips_per_s" in kept and row["clips_per_s"] * SLACK < kept["clips_per_s"]:
        found.append(f"clips_per_s {row['clips_per_s']} instead of {kept['clips_per_s']}")
    for kind, count in row["collectives"].items():
        if count > kept["collectives"].get(kind, 0):
            found.append(f"{count} {kind} instead of {kept['collectives'].get(kind, 0)}")
    return found
