"""The tab key, as bash would press it."""

import shutil
import subprocess

import pytest

from loopjax.cli import VERBS, main


def completions(script: str, *words: str) -> set[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    program = f"""{script}
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
$(complete -p loopjax | sed -E 's/.*-F ([^ ]+).*/\\1/') loopjax "${{COMP_WORDS[COMP_CWORD]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    shell = [shutil.which("bash") or "bash", "--norc", "-c", program]
    done = subprocess.run(shell, capture_output=True, text=True, check=True)
    return {word.strip() for word in done.stdout.splitlines()} - {""}


@pytest.fixture
def script(capsys):
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def test_verbs_options_choices_and_files_are_completed(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emb.parquet").touch()
    assert completions(script, "loopjax", "") >= set(VERBS)
    assert completions(script, "loopjax", "fi") == {"fit", "finetune"}
    assert "--detector" in completions(script, "loopjax", "fit", "--de")
    assert completions(script, "loopjax", "fit", "--detector", "sp") == {"sphere-svdd"}
    assert completions(script, "loopjax", "fit", "em") == {"emb.parquet"}


@pytest.mark.parametrize(
    ("shell", "words"), [("zsh", "#compdef loopjax"), ("fish", "complete -c loopjax")]
)
def test_other_shells(shell, words, capsys):
    assert main(["completion", shell]) == 0
    assert words in capsys.readouterr().out
