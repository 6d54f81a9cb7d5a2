"""Processes, meshes and the place of compiled programs; several processes: tests/faults."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from loopjax import parallel
from loopjax.errors import LoopjaxError, UserError, WriteError


def test_single_process_needs_no_coordinator():
    ran = []
    with parallel.joined():
        assert parallel.process_slot() == (0, 1)
        parallel.wait_for_all()
        assert not parallel.is_stopping()
        parallel.first_process_does(lambda: ran.append(1))
    assert ran == [1]


class Service:
    """What the threads of a test, each with an index of its own, have for a coordinator."""

    def __init__(self, count: int):
        self.own = threading.local()
        self.values: dict[str, str] = {}
        self._barrier = threading.Barrier(count, timeout=20)

    def wait_at_barrier(self, name: str, timeout_ms: int) -> None:
        self._barrier.wait()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(k, v) for k, v in self.values.items() if k.startswith(f"{folder}/")]

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        return self.values[key]


@pytest.mark.parametrize("place", ["before", "first process", "between", "end"])
def test_an_error_of_one_process_ends_all(monkeypatch, place):
    service = Service(3)
    monkeypatch.setattr(parallel, "process_slot", lambda: (service.own.index, 3))
    monkeypatch.setattr(parallel, "_initialize", lambda *arguments: None)
    monkeypatch.setattr(parallel, "_coordination", lambda: service)
    failing = 0 if place == "first process" else 1

    def fail(now: str) -> None:
        if place == now and service.own.index == failing:
            raise WriteError("disk full: /out")

    def work(index: int) -> LoopjaxError:
        service.own.index = index
        with pytest.raises(LoopjaxError) as caught, parallel.joined("auto"):
            fail("before")
            parallel.first_process_does(lambda: fail("first process"))
            assert parallel.gather(str(index)) == ["0", "1", "2"]
            fail("between")
            while place == "between" and not parallel.is_stopping():
                time.sleep(0.01)
            parallel.wait_for_all()
            fail("end")
        return caught.value

    with ThreadPoolExecutor(3) as threads:
        errors = list(threads.map(work, range(3)))
    assert [error.exit_code for error in errors] == [6, 6, 6]
    told = f"process {failing} stopped, and so does this one: disk full: /out"
    assert {str(error) for i, error in enumerate(errors) if i != failing} == {told}
    assert str(errors[failing]) == "disk full: /out"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "need --coordinator"),
        (("host:1", None, None), "--processes N and --process-index I"),
        (("host:1", 2, None), "--processes N and --process-index I"),
        *(((f"host:{port}", 2, 0), "HOST:PORT") for port in ("0", "70000", "-5", "http", "")),
        *(((address, 2, 1), "HOST:PORT") for address in ("", "host", ":", ":1234", "[::1]:65536")),
        (("host:1", 2, 2), "numbered from 0"),
        (("host:1", 2, -1), "numbered from 0"),
        (("host:1", 0, 0), "numbered from 0"),
    ],
)
def test_incomplete_arguments_are_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        parallel.joined(*arguments).__enter__()


def test_mesh_covers_the_local_devices_with_auto_axes():
    mesh = parallel.data_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.devices.size == len(jax.local_devices())
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
    x = jax.device_put(
        jax.numpy.zeros((mesh.devices.size * 2, 4, 4)), parallel.batch_sharding(mesh)
    )
    windows = jax.jit(lambda v: v.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3))(x)
    assert windows.shape[0] == mesh.devices.size * 2


@pytest.fixture
def jax_settings():
    """Puts the settings back that the cache changes."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_is_private_and_per_machine(tmp_path, monkeypatch, jax_settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = parallel.enable_compilation_cache()
    assert folder.parent == tmp_path / "loopjax" / "jax"
    assert folder.stat().st_mode & 0o077 == 0
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert parallel.enable_compilation_cache() == folder
    folder.chmod(0o777)
    with pytest.raises(UserError, match="can be written by others"):
        parallel.enable_compilation_cache()


def test_cache_without_user_numbers_as_on_windows(tmp_path, monkeypatch, jax_settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delattr("os.getuid")
    folder = parallel.enable_compilation_cache()
    assert folder is not None
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_cache_that_cannot_be_made_is_only_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert parallel.enable_compilation_cache() is None
    assert "not kept" in caplog.text


def test_given_cache_folder_wins(tmp_path, monkeypatch, jax_settings):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert parallel.enable_compilation_cache() == tmp_path / "mine"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine")
