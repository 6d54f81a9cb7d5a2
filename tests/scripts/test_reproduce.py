"""The README's table is found, and a figure that is not in it is named."""

import json
import re
from pathlib import Path

from scripts import reproduce

ROOT = Path(__file__).parents[2]
DETECTORS = ["sphere-svdd", "local-knn", "ensemble", "residual", "standard"]
DETECTORS += ["isolation-forest", "pca", "knn", "mahalanobis"]


def test_the_readmes_table_is_compared_figure_by_figure():
    written = reproduce.readme_table((ROOT / "README.md").read_text())
    assert [len(row) for row in written] == [9, 9, 9]
    encoders = ["loopjax-nano", "untrained-nano", "log-mel-statistics"]
    rows = [
        {"encoder": encoder, **dict(zip(DETECTORS, row, strict=True))}
        for encoder, row in zip(encoders, written, strict=True)
    ]
    rows[1]["pca"] += 0.02
    rows[2]["knn"] += 0.002
    tables = [{"title": "Detectors", "rows": []}, {"title": "Encoders", "rows": rows}]
    found = reproduce.run_table(json.dumps({"tables": tables}))
    (line,) = reproduce.differences(written, *found)
    assert line.startswith("untrained-nano, pca: ")


def test_the_lock_satisfies_what_the_project_asks_for():
    """Every dependency is pinned, at no less than its lower bound."""
    project = (ROOT / "pyproject.toml").read_text()
    section = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {}
    for name, version in pins:
        pinned.setdefault(name.replace("_", "-"), []).append(_numbers(version))
    asked = re.findall(r'^\s*"([A-Za-z0-9_-]+)>=([\d.]+)', section.group(1), re.MULTILINE)
    asked += [("jinja2", "3.1"), ("matplotlib", "3.9"), ("pedalboard", "0.9.17")]
    assert len(asked) > 15
    for name, least in asked:
        versions = pinned[name.lower().replace("_", "-")]
        assert all(version >= _numbers(least) for version in versions), name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
