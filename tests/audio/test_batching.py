"""Buckets, batches, and the feeder's promises."""

import threading
import time
from queue import Empty

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopjax.audio.batching import Row, make_buckets
from loopjax.audio.decoder import Reply, one_by_one
from loopjax.audio.feeding import Feeder
from loopjax.audio.loop import AudioInfo, DecodeError, Failure, Loop

EDGES = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)


class FakeDecoder:
    """Decodes a loop named 'N' to N samples of value N."""

    def __init__(self, rate_hz=1000, delay_s=0.0):
        self._rate_hz, self._delay_s = rate_hz, delay_s
        self.closed = False
        self.decoded: list[int] = []

    def decode_each(self, loops):
        return one_by_one(self.decode, loops)

    def decode(self, loop: Loop) -> Reply:
        time.sleep(self._delay_s)
        n = int(loop.path)
        if n < 0:
            raise DecodeError("decode_error", "negative")
        self._n = n
        self.decoded.append(n)
        rate = self._rate_hz
        info = AudioInfo(rate, f"{n:064x}", rate, 1, n, n / rate, "PCM_16")
        return Reply(loop, info, np.dtype("int16"), n, self)

    def copy_samples(self, out: np.ndarray) -> None:
        out[:] = self._n

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def loop(n: int) -> Loop:
    return Loop(f"{n & 0xFFFF:016x}", str(n), str(n).encode(), 0, 0, "group")


def feed(lengths, decoders=None, batch_size=4, **kwargs):
    failures: list[Failure] = []
    buckets = make_buckets(EDGES, 100.0, batch_size)
    decoders = decoders or [FakeDecoder()]
    feeder = Feeder(map(loop, lengths), decoders, buckets, failures.append, **kwargs)
    batches = list(feeder)
    feeder.close()
    return batches, failures


@given(st.integers(1, 100_000), st.sampled_from([8_000, 22_050, 44_100, 48_000]))
def test_smallest_bucket_that_fits(n_samples, rate_hz):
    buckets = make_buckets(EDGES, 20.0, 4)
    size = buckets.samples(n_samples, rate_hz)
    sizes = [int(np.ceil(edge * rate_hz)) for edge in buckets.edges_s]
    assert size == min([s for s in sizes if s >= n_samples], default=n_samples)


def test_long_buckets_double_up_to_the_limit_with_fewer_rows():
    buckets = make_buckets(EDGES, 100.0, 64, n_parts=8)
    assert buckets.edges_s == (*EDGES, 20.0, 40.0, 80.0, 100.0)
    rows = [buckets.rows(int(edge * 48_000)) for edge in buckets.edges_s]
    assert rows == [64, 64, 64, 64, 40, 32, 16, 8, 8, 8]  # never fewer than the devices


def test_short_limit_and_own_edges():
    assert make_buckets(EDGES, 3.0, 4).edges_s == (0.5, 1.0, 2.0, 3.0)
    assert make_buckets((), 3.0, 4).edges_s == (3.0,)
    assert make_buckets((5.0, 1.0), 5.0, 4).edges_s == (1.0, 5.0)


def test_every_loop_lands_once_in_its_own_bucket_and_place():
    lengths = [100, 600, 450, 1500, 499, 501, 9999, 20_000, 3, 700]
    batches, failures = feed(lengths)
    assert not failures
    seen = []
    for batch in batches:
        assert batch.samples.shape[1] == batch.bucket_samples
        assert batch.mask.sum() == len(batch.rows)
        for row, samples, length in zip(
            batch.rows, batch.samples, batch.length_samples, strict=False
        ):
            n = int(row[0].loop.path)
            seen.append(n)
            assert length == n
            assert (samples[:n] == n).all()
            assert not samples[n:].any()
        empty = ~batch.mask
        assert not batch.samples[empty].any()
        assert not batch.length_samples[empty].any()
    assert sorted(seen) == sorted(lengths)


def test_batches_of_a_bucket_have_one_shape():
    batches, _ = feed([100 + i for i in range(50)], batch_size=8)
    assert {batch.samples.shape for batch in batches} == {(8, 500)}
    assert [len(batch.rows) for batch in batches] == [8] * 6 + [2]


def test_many_threads_lose_nothing():
    lengths = [1 + (i * 37) % 3000 for i in range(400)]
    batches, failures = feed([*lengths, -5], [FakeDecoder() for _ in range(8)], batch_size=16)
    found = [int(row[0].loop.path) for batch in batches for row in batch.rows]
    assert sorted(found) == sorted(lengths)
    assert [f.reason for f in failures] == ["decode_error"]
    for batch in batches:
        for row, samples, n in zip(batch.rows, batch.samples, batch.length_samples, strict=False):
            assert n == int(row[0].loop.path)
            assert (samples[:n] == np.int16(n)).all()


def test_failures_from_the_manifest_pass_through():
    missing = Failure("k", "p", b"p", "scan", "not_found", "gone")
    failures: list[Failure] = []
    buckets = make_buckets(EDGES, 100.0, 4)
    feeder = Feeder([missing, loop(5)], [FakeDecoder()], buckets, failures.append)
    assert len(list(feeder)) == 1
    assert failures == [missing]


def test_rows_that_are_not_needed_take_no_place():
    def attach(row: Row):
        return None if int(row.loop.path) % 2 else [row]

    batches, _ = feed([1, 2, 3, 4], attach=attach)
    assert [int(r[0].loop.path) for r in batches[0].rows] == [2, 4]


def test_open_batches_stay_within_the_host_budget():
    lengths = [400, 900, 1900, 3900, 7900, 9900] * 4
    budget = 3 * 10_000 * 2  # three loops of the largest bucket
    batches, _ = feed(lengths, host_bytes=budget)
    found = [int(row[0].loop.path) for batch in batches for row in batch.rows]
    assert sorted(found) == sorted(lengths)
    early = [batch for batch in batches[:-6] if len(batch.rows) < len(batch.samples)]
    assert early
    assert min(batch.bucket_samples for batch in early) >= 4000  # short loops hold little


def test_the_rows_of_a_part_filled_batch_are_spread_over_the_devices():
    buckets = make_buckets(EDGES, 100.0, 12, n_parts=3)
    feeder = Feeder(map(loop, range(1, 8)), [FakeDecoder()], buckets, lambda f: None)
    (batch,) = list(feeder)
    assert batch.length_samples.tolist() == [1, 4, 7, 0, 2, 5, 0, 0, 3, 6, 0, 0]
    assert batch.positions() == [0, 4, 8, 1, 5, 9, 2]
    per_part = [[row[0].loop.path for row in part] for part in batch.rows_by_part()]
    assert per_part == [["1", "4", "7"], ["2", "5"], ["3", "6"]]


def test_feeder_runs_ahead_only_as_far_as_its_queue():
    decoder = FakeDecoder()
    buckets = make_buckets(EDGES, 100.0, 4)
    feeder = Feeder(map(loop, range(1, 400)), [decoder], buckets, lambda f: None, queue_batches=2)
    feeder.start()
    time.sleep(0.3)
    assert len(decoder.decoded) <= 4 * 3 + 1
    feeder.close()
    assert decoder.closed


def test_errors_of_a_thread_reach_the_caller():
    class Broken(FakeDecoder):
        def decode(self, loop):
            raise RuntimeError("bug")

    buckets = make_buckets(EDGES, 100.0, 4)
    feeder = Feeder(map(loop, range(1, 9)), [Broken()], buckets, lambda f: None)
    with pytest.raises(RuntimeError, match="bug"):
        list(feeder)
    feeder.close()


def test_memory_that_is_used_again_holds_nothing_of_before():
    """Batches, also the last one, which is not full, are zero past every row's end."""
    buckets, addresses = make_buckets(EDGES, 100.0, 4), []
    lengths = [900, 700, 950, 800, 600, 650, 700, 610, 990, 640]  # 1 s holds all of them
    decoder = FakeDecoder(delay_s=0.02)  # so that the first batch comes back before the third
    feeder = Feeder(map(loop, lengths), [decoder], buckets, lambda f: None, queue_batches=1)
    for batch in feeder:
        for row, n_samples in zip(batch.samples, batch.length_samples, strict=True):
            assert (row[:n_samples] == n_samples).all() and not row[n_samples:].any()
        addresses.append(batch.samples.ctypes.data)
        batch.samples[:] = -7
        batch.recycle(batch.samples)
    assert len(addresses) == 3 and len(set(addresses)) < 3


def test_who_has_loops_in_hand_does_not_wait_for_more():
    decoder, buckets = FakeDecoder(), make_buckets(EDGES, 100.0, 4)

    def loops():
        for i in range(1, 9):
            yield loop(i)
            while len(decoder.decoded) < i:  # the next comes only once this one is done
                yield None
                time.sleep(0.001)

    feeder = Feeder(loops(), [decoder], buckets, lambda f: None)
    assert sum(len(batch.rows) for batch in feeder) == 8


def test_waiting_can_be_limited():
    before = set(threading.enumerate())
    buckets = make_buckets(EDGES, 100.0, 4)
    feeder = Feeder([loop(1)], [FakeDecoder(delay_s=0.5)], buckets, lambda f: None)
    feeder.start()
    with pytest.raises(Empty):
        feeder.get(0.01)
    assert feeder.get() is not None
    assert feeder.get() is None
    feeder.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5.0)
        assert not thread.is_alive()
