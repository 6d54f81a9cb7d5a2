"""What the walk finds, in which order, and which sources are mistakes."""

import os

import pytest

from loopjax.audio.decode import decode_file
from loopjax.audio.loop import Failure, Loop, display
from loopjax.audio.sources.files import Files, scan
from loopjax.audio.sources.selection import Selection
from loopjax.errors import UserError
from tests.audio_files import write_tone


@pytest.fixture
def corpus(tmp_path):
    """Two packs with audio, other files and a hidden companion."""
    root = tmp_path / "packs"
    for name in ("b_pack/two.WAV", "b_pack/deep/er/three.flac", "a_pack/one.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_tone(root / name)
    (root / "a_pack" / "._one.wav").write_bytes(b"resource fork")
    (root / "a_pack" / "cover.png").write_bytes(b"picture")
    return root


def names(rows) -> list[str]:
    return [os.path.basename(row.path) for row in rows]  # noqa: PTH119


def test_groups_are_folders_below_the_source(corpus):
    def groups(*sources):
        return [row.group for row in scan(sources)]

    assert groups(corpus / "b_pack") == ["b_pack", "deep/er"]
    assert groups(corpus / "b_pack", corpus / "a_pack") == ["b_pack", "b_pack/deep/er", "a_pack"]
    assert groups(corpus / "b_pack" / "two.WAV") == ["b_pack"]
    (corpus / "list.txt").write_text("b_pack/deep/er/three.flac\nb_pack/two.WAV\n")
    assert groups(corpus / "list.txt") == ["b_pack/deep/er", "b_pack"]


def test_walk_is_stable_and_finds_audio_only(corpus):
    rows = list(scan([corpus]))
    assert names(rows) == ["one.wav", "two.WAV", "three.flac"]
    assert names(scan([corpus])) == names(rows)
    assert [row.group for row in rows] == ["a_pack", "b_pack", "b_pack/deep/er"]
    assert len(Files([corpus])) == 3
    info = (corpus / "a_pack" / "one.wav").stat()
    assert (rows[0].size_bytes, rows[0].mtime_ns) == (info.st_size, info.st_mtime_ns)
    assert rows[0].path_bytes == os.fsencode(corpus / "a_pack" / "one.wav")


def test_keys_survive_a_move_and_depend_on_the_folder_name(corpus, tmp_path):
    before = [row.key for row in scan([corpus])]
    (tmp_path / "elsewhere").mkdir()
    moved = corpus.rename(tmp_path / "elsewhere" / "packs")
    assert [row.key for row in scan([moved])] == before
    renamed = moved.rename(tmp_path / "elsewhere" / "other")
    assert not set(before) & {row.key for row in scan([renamed])}
    assert len(set(before)) == 3


def test_key_is_the_hash_of_folder_name_and_relative_path(corpus):
    import hashlib

    expected = hashlib.sha256(b"packs/a_pack/one.wav").hexdigest()[:16]
    assert next(scan([corpus])).key == expected


@pytest.mark.parametrize("n_slices", [2, 3])
def test_slices_are_disjoint_and_complete(corpus, n_slices):
    whole = {row.key for row in scan([corpus])}
    slices = [{row.key for row in scan([corpus], i, n_slices)} for i in range(n_slices)]
    assert set.union(*slices) == whole
    assert sum(map(len, slices)) == len(whole)


def test_lists_and_files(corpus, tmp_path):
    listing = tmp_path / "some.txt"
    listing.write_text(
        "# chosen loops\npacks/b_pack/two.WAV\n\npacks/nowhere.wav\npacks/b_pack/two.WAV\n"
    )
    rows = list(scan([listing]))
    assert names(rows) == ["two.WAV", "nowhere.wav"]
    assert isinstance(rows[1], Failure)
    assert rows[1].reason == "not_found"
    by_name = list(scan([corpus / "a_pack" / "one.wav", corpus / "b_pack" / "two.WAV"]))
    assert names(by_name) == ["one.wav", "two.WAV"]
    assert by_name[1].key == rows[0].key  # lists and files: the absolute path


def test_current_folder_is_the_folder(corpus, monkeypatch):
    keys = [row.key for row in scan([corpus])]
    monkeypatch.chdir(corpus)
    assert [row.key for row in scan(["."])] == keys


def test_mistakes_name_the_thing_and_the_fix(corpus, tmp_path):
    with pytest.raises(UserError, match="no sources"):
        scan([])
    with pytest.raises(UserError, match=r"nowhere.*no such file or folder"):
        scan([tmp_path / "nowhere"])
    (tmp_path / "README.md").write_text("# text\n")
    with pytest.raises(UserError, match=r"README.md is not an audio file \(WAV"):
        scan([tmp_path / "README.md"])
    with pytest.raises(UserError, match="name only the outer folder"):
        scan([corpus / "a_pack", corpus])
    assert len(list(scan([corpus, corpus]))) == 3
    (tmp_path / "x" / "a_pack").mkdir(parents=True)
    with pytest.raises(UserError, match="two folders are called 'a_pack'"):
        scan([corpus / "a_pack", tmp_path / "x" / "a_pack"])
    with pytest.raises(UserError, match="bundled:demo"):
        scan(["bundled:nothing"])


def test_named_file_with_an_audio_extension_becomes_a_row_even_if_broken(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"")
    assert isinstance(next(scan([tmp_path / "broken.wav"])), Loop)


def test_audio_under_an_unusual_extension_can_be_named(tmp_path):
    path = write_tone(tmp_path / "a.wav").rename(tmp_path / "a.sample")
    assert isinstance(next(scan([path])), Loop)
    assert len(Files([tmp_path])) == 0


def test_display_is_always_valid_text():
    assert display(b"caf\xc3\xa9 \xff.wav") == "café \\xff.wav"


def test_patterns_choose_files(corpus):
    def taken(**patterns) -> list[str]:
        selection = Selection(**{name: tuple(value) for name, value in patterns.items()})
        found = names(scan([corpus], selection=selection))
        assert len(Files([corpus], selection)) == len(found)
        return found

    assert taken(include=["*.wav"]) == ["one.wav", "two.WAV"]
    assert taken(exclude=["deep"]) == ["one.wav", "two.WAV"]
    assert taken(include=["b_pack/*"], exclude=["*.flac"]) == ["two.WAV"]
    assert taken(include=["o*", "three*"]) == ["one.wav", "three.flac"]


FOREIGN = {
    "m4a.m4a": b"\0\0\0\x1cftypM4A ",
    "w.wma": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "wv.wv": b"wvpk",
    "s.spx": b"OggS",
    "aac.AAC": b"\xff\xf1\x50\x80",
    "without_extension": b"wvpk",
}


def test_audio_that_cannot_be_read_is_listed_all_the_same(tmp_path):
    for name, head in FOREIGN.items():
        (tmp_path / name).write_bytes(head + bytes(100))
    write_tone(tmp_path / "good.wav").rename(tmp_path / "good")
    (tmp_path / "README").write_text("about these loops")
    (tmp_path / "picture.png").write_bytes(b"picture")
    os.mkfifo(tmp_path / "pipe")
    assert set(names(scan([tmp_path]))) == {*FOREIGN, "good"}
    assert len(Files([tmp_path])) == len(FOREIGN) + 1


def test_times_beyond_64_bits_are_rows(tmp_path):
    path = write_tone(tmp_path / "late.wav", 0.01)
    late_s = 10_413_792_000  # the year 2300
    os.utime(path, (late_s, late_s))
    if path.stat().st_mtime_ns < 1 << 63:
        pytest.skip("the file system does not keep such times")
    row = next(scan([path]))
    assert row.mtime_ns == (1 << 63) - 1
    assert decode_file(row.path_bytes, row.size_bytes, row.mtime_ns).info.n_frames == 480
