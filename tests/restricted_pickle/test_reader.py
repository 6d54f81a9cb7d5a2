"""Pickles are data: every protocol reads, nothing runs, nothing takes more than its size allows."""

import os
import pickle
import random
import time
import tracemalloc

import numpy as np
import pytest

from loopjax.restricted_pickle.arrays import NUMPY_FUNCTIONS, PickledArray
from loopjax.restricted_pickle.machine import (
    MEMORY_PER_BYTE,
    SPARE_BYTES,
    RefusedError,
    UnknownNameError,
)
from loopjax.restricted_pickle.reader import load

MATRIX = np.arange(12, dtype=np.float64).reshape(4, 3)
SLACK = 1.2  # of Python's own allocator


def plain(value):
    """The value with its arrays built."""
    if isinstance(value, PickledArray):
        return plain(value.read().tolist())
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        [None, True, False, 0, 255, 256, 65536, -1, -(2**31), 2**40, 10**30, 1.5, -0.0, 1e300],
        {"a": ("b", [{}, (), []], b"\x00\xff"), 3: "\u00fc\u4e2d\U0001f3b5", b"k": "\n'\"\\"},
        [0.5] * 3000,
        "x" * 70000,
        (1, (2, (3, (4,)))),
        [["shared"] * 2] * 3,
    ],
    ids=["numbers", "containers", "floats", "long text", "tuples", "references"],
)
def test_plain_values_of_every_protocol(protocol, value):
    assert load(pickle.dumps(value, protocol), NUMPY_FUNCTIONS) == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        MATRIX,
        MATRIX.T,
        MATRIX.astype(">f4"),
        MATRIX.astype(np.float16),
        np.zeros((0, 5), np.int64),
        np.array(7, np.uint8),
        np.array([[True], [False]]),
        np.array(["a", "", "\u00fc\u4e2d"]),
        np.array([b"ab", b"c"]),
        np.array(["text", None, 3], object),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_of_every_protocol(protocol, array):
    read = load(pickle.dumps(array, protocol), NUMPY_FUNCTIONS).read()
    assert read.shape == array.shape
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_scalars_and_sets():
    value = {"rate": np.float32(0.25), "seen": {3}, "frozen": frozenset({4}), "name": np.str_("a")}
    for protocol in (2, 4, 5):
        functions = NUMPY_FUNCTIONS | {("__builtin__", "set"): lambda items: items}
        functions |= {("__builtin__", "frozenset"): lambda items: items}
        read = load(pickle.dumps(value, protocol), functions)
        assert read == {"rate": 0.25, "seen": [3], "frozen": [4], "name": "a"}


def test_text_of_python_2():
    assert load(b"\x80\x02(U\x02abU\x02\xff\xfeS'a\\x41'\nl.", {}) == ["ab", b"\xff\xfe", "aA"]


@pytest.mark.parametrize(
    "value",
    [{1.5: 0}, {(1, 2): 0}, {None: 0}, {2**61 - 1: 0}, complex(1), slice(1), np.array([1j])],
)
def test_what_is_not_data_of_ours_is_refused(value):
    with pytest.raises(RefusedError):
        load(pickle.dumps(value), NUMPY_FUNCTIONS)


class Command:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=r"(posix|nt)\.system.*nothing was run"):
        load(pickle.dumps([MATRIX, Command()], protocol), NUMPY_FUNCTIONS)
    assert not list(tmp_path.iterdir())


def forged(dtype_state: bytes, spelling: bytes = b"O8", raw: bytes = b"A" * 8) -> bytes:
    """An array of one element whose dtype takes a state that its file chose."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01t"
        b"cnumpy\ndtype\n(U"
        + bytes([len(spelling)])
        + spelling
        + b"\x89\x88tR"
        + dtype_state
        + b"b"
        b"\x89C" + bytes([len(raw)]) + raw + b"tb."
    )


@pytest.mark.parametrize(
    ("state", "spelling"),
    [
        (b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t", b"O8"),  # pointers from bytes
        (b"(K\x03U\x01|NNNK\x08K\x01K?t", b"V8"),  # any type, with the flags of objects
        (b"(K\x03U\x01|(cnumpy\ndtype\n(U\x02O8tR(K\x01ttNNK\x08K\x01K?t", b"f8"),  # subarray
        (b"(K\x03U\x01|N(U\x01att}U\x01a)sK\x08K\x01K?t", b"f8"),  # fields
        (b")", b"f8"),
        (b"N", b"f8"),
        (b"K\x01", b"f8"),
        (b"(K\x03U\x01?NNNK\x08K\x01K\x00t", b"f8"),
    ],
)
def test_a_dtype_never_takes_its_own_state(state, spelling):
    with pytest.raises(RefusedError):
        load(forged(state, spelling), NUMPY_FUNCTIONS)


def test_flags_in_the_state_of_a_number_mean_nothing():
    honest = forged(b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t", b"f8")
    assert load(honest, NUMPY_FUNCTIONS).read().dtype == np.dtype("<f8")


@pytest.mark.parametrize(
    ("shape", "raw"), [((2,), 8), ((1,), 7), ((-1,), 8), ((2**70, 0), 0), ((1,) * 33, 8), ((), 0)]
)
def test_elements_fit_the_shape(shape, raw):
    dtype = b"cnumpy\ndtype\n(U\x02f8tR"
    data = (
        b"cnumpy.core.numeric\n_frombuffer\n(C" + bytes([raw]) + b"x" * raw + dtype
        + pickle.dumps(shape, 2)[2:-1] + b"U\x01CtR."
    )  # fmt: skip
    with pytest.raises(RefusedError):
        load(data, NUMPY_FUNCTIONS).read()


N = 1 << 18
LATIN = b"X\x06\0\0\0latin1"
GREEDY = {
    "a reference far away": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "a reference within": b"K\x01r" + (N - 1).to_bytes(4, "little") + b"." + bytes(N),
    "dicts": b"(" + b"}" * N + b"l.",
    "dicts of one": b"K\x01\x940(" + b"}h\x00Ns" * (N // 5) + b"l.",
    "remembered": b"K\x01" + b"\x94" * N + b".",
    "sets": b"(" + b"\x8f" * N + b"l.",
    "marks": b"(" * N + b".",
    "nested": b")" + b"\x85" * N + b".",
    "nested lists": b"(" * N + b"l" * N + b".",
    "wide text": b"(" + b"X\x05\0\0\0a\xf0\x9f\x98\x80" * (N // 10) + b"l.",
    "calls with a large value": b"c_codecs\nencode\nq\x000X" + N.to_bytes(4, "little") + b"a" * N
    + LATIN + b"\x86q\x010(" + b"h\x00h\x01R" * (N // 5) + b"l.",
    "lists of lists of lists": b"]q\x00"
    + b"".join(b"0(" + bytes([104, i]) * 9 + b"lq" + bytes([i + 1]) for i in range(40))
    + b".",
    "one array, often": b"cnumpy.core.numeric\n_frombuffer\n(B" + N.to_bytes(4, "little") + b"x" * N
    + b"cnumpy\ndtype\n(U\x02u1tR(J" + N.to_bytes(4, "little") + b"tU\x01CtRq\x000(" + b"h\x00" * N
    + b"l.",
    "itself": b"]q\x00h\x00a.",
    "a long integer": b"\x8b" + N.to_bytes(4, "little") + b"\x7f" * N + b".",
    "many digits": b"L" + b"9" * N + b"L\n.",
    "an endless name": b"c" + b"n" * N + b"\n" + b"n" * N + b"\n.",
    "equal hashes": b"}(" + b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, N // 16)
    ) + b"u.",
    "a claim of bytes": b"\x8e" + (1 << 40).to_bytes(8, "little") + b".",
}  # fmt: skip
HARMLESS = {"a reference within", "dicts of one", "remembered", "wide text"}


@pytest.mark.faults
@pytest.mark.parametrize("name", GREEDY)
def test_memory_and_time_are_bounded_by_the_size(name):
    data = GREEDY[name]
    tracemalloc.start()
    started_s = time.perf_counter()
    try:
        load(data, NUMPY_FUNCTIONS)
        refused = False
    except RefusedError:
        refused = True
    took_s = time.perf_counter() - started_s
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused is (name not in HARMLESS)
    assert peak_bytes <= SLACK * MEMORY_PER_BYTE * len(data) + SPARE_BYTES
    assert took_s < 20  # a millisecond without tracing; the attack took minutes


@pytest.mark.faults
def test_damaged_files_read_or_are_refused():
    """One byte changed, or the end cut off, anywhere in files of every protocol."""
    rng = random.Random(0)
    value = {"embeddings": MATRIX, "id": ["a", "b"], "n": {1: np.float32(2)}, "o": ({}, 10**20)}
    for protocol in range(6):
        data = pickle.dumps(value, protocol)
        for _ in range(400):
            at = rng.randrange(len(data))
            broken = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            for bad in (broken, data[:at]):
                try:
                    plain(load(bad, NUMPY_FUNCTIONS))
                except RefusedError as error:
                    assert len(str(error)) < 500
