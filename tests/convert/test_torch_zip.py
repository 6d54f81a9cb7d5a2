"""Reading PyTorch files without PyTorch: what is read; nothing hostile runs or explodes."""

import pickle
import zipfile
import zlib

import numpy as np
import pytest

from loopjax.convert.torch_pickle import read_torch_pickle
from loopjax.convert.torch_zip import TorchZip
from loopjax.errors import UserError
from loopjax.restricted_pickle.machine import RefusedError
from scripts.fuzz.torch_files import Call, Global, Storage, tensor, write_torch

pytestmark = pytest.mark.faults
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pt"


def refusal(path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        opened = TorchZip(path)
        for lazy in opened.tensors().values():
            lazy.read()
    return str(caught.value)


@pytest.mark.parametrize("container", ["", "model.", "checkpoint.ema."])
def test_reads_tensors_of_every_kind(file, container):
    state = {
        "w": WEIGHT,
        "half": WEIGHT.astype(np.float16),
        "count": np.array(7),
        "empty": np.zeros((0, 4), np.float32),
        "view": tensor(Storage("FloatStorage", 0, 6), 1, (2, 2), (1, 3)),
    }
    content = state
    for name in reversed(container.split(".")[:-1]):
        content = {name: content, "epoch": 3}
    tensors = TorchZip(write_torch(file, content)).tensors()
    tensors = {name.removeprefix(container): tensor for name, tensor in tensors.items()}
    np.testing.assert_array_equal(tensors["w"].read(), WEIGHT)
    np.testing.assert_array_equal(tensors["half"].read(), WEIGHT.astype(np.float16))
    np.testing.assert_array_equal(tensors["view"].read(), [[1, 4], [2, 5]])
    assert tensors["count"].read() == 7
    assert tensors["empty"].shape == tensors["empty"].read().shape == (0, 4)


def test_training_state_is_read_past_and_not_run(file):
    rate = Call(
        Global("numpy.core.multiarray", "scalar"),
        (Call(Global("numpy", "dtype"), ("f8", False, True)), np.float64(0.25).tobytes()),
    )
    callback = Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    optimizer = {"lr": rate, "seen": Call(Global("builtins", "set"), ([1, 2],))}
    content = {"state_dict": {"w": WEIGHT}, "optimizer": optimizer, "callbacks": {callback: 1}}
    opened = TorchZip(write_torch(file, content))
    assert opened.content["optimizer"] == {"lr": 0.25, "seen": [1, 2]}
    assert list(opened.tensors()) == ["state_dict.w"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
        ("numpy", "load"),
    ],
)
def test_code_is_refused_by_name_and_does_not_run(file, tmp_path, module, name):
    canary = tmp_path / "canary"
    bad = Call(Global(module, name), (f"touch {canary}",))
    message = refusal(write_torch(file, {"state_dict": {"w": WEIGHT}, "x": bad}))
    assert f"{module}.{name}" in message
    assert "nothing was run" in message
    assert not canary.exists()


def test_a_mentioned_class_cannot_be_called(file):
    bad = Call(Global("pytorch_lightning.utilities", "anything"), ("touch canary",))
    assert "no listed function" in refusal(
        write_torch(file, {"state_dict": {"w": WEIGHT}, "x": bad})
    )


def test_nothing_that_is_built_can_be_altered():
    """BUILD sets attributes of what a pickle made; no such thing has any."""
    make_dict = b"ccollections\nOrderedDict\n)R"
    altered = read_torch_pickle(b"\x80\x02" + make_dict + b"}X\x05\x00\x00\x00itemsK\x01sb.")
    assert callable(altered.items)
    for target in (b"ctorch\nFloatStorage\n", b"c_codecs\nencode\n"):
        with pytest.raises(RefusedError):
            read_torch_pickle(b"\x80\x02" + target + b"}X\x01\x00\x00\x00aK\x01sb.")


def test_compressed_members_are_refused_unread(file):
    """A bomb: a few kilobytes that claim to be 64 MB."""
    bomb = {"state_dict": {"w": np.zeros(16 << 20, np.float32)}}
    write_torch(file, bomb, compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 1 << 20
    assert "compressed member" in refusal(file)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "archive/../../evil", "a\\b"])
def test_members_outside_the_archive_are_refused(file, name):
    write_torch(file, {"state_dict": {"w": WEIGHT}}, members={name: b"x"})
    assert "outside its own folder" in refusal(file)


def test_storage_sizes_must_be_honest(file):
    for claimed, message in ((7, "lies about storage 0"), (2**40, "lies about storage 0")):
        lie = {"w": tensor(Storage("FloatStorage", 0, claimed), 0, (claimed,), (1,))}
        write_torch(file, {"a": WEIGHT, **lie})
        assert message in refusal(file)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (7,), (1,)), (4, (3,), (1,)), (0, (2, 3), (6, 1)), (0, (2**40,), (0,)), (-1, (2,), (1,))],
)
def test_tensors_must_stay_inside_their_storage(file, offset, shape, strides):
    escaped = tensor(Storage("FloatStorage", 0, 6), offset, shape, strides)
    message = refusal(write_torch(file, {"a": WEIGHT, "w": escaped}))
    assert "leaves its storage" in message or "malformed tensor" in message


def test_a_huge_memo_index_is_refused_before_it_allocates(file):
    evil = b"\x80\x02K\x01r\xff\xff\xff\x7f."
    write_torch(file, {}, members={"archive/data.pkl": evil})
    assert "malformed" in refusal(file)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_say_so(file, keep):
    data = write_torch(file, {"state_dict": {"w": WEIGHT}}).read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    assert "no complete PyTorch file" in refusal(file)


def test_the_old_format_says_how_to_save_anew(file):
    file.write_bytes(pickle.dumps({"w": 1}, protocol=2))
    assert "torch.save(torch.load(OLD" in refusal(file)


def test_a_zip_of_something_else_and_a_file_without_tensors(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "no data.pkl" in refusal(file)
    assert "holds no tensors" in refusal(write_torch(file, {"state_dict": {"epoch": 3}}))
    assert "holds no tensors" in refusal(write_torch(file, [1, 2]))


@pytest.mark.faults
def test_changed_bytes_of_a_tensor_do_not_pass(file):
    data = bytearray(write_torch(file, {"w": WEIGHT, "v": WEIGHT + 9}).read_bytes())
    at = data.index((WEIGHT + 9).tobytes())
    data[at + 5] ^= 1
    file.write_bytes(data)
    assert "data/1 does not match its checksum" in refusal(file)
    assert TorchZip(file).tensors()["w"].read().sum() == WEIGHT.sum()


def test_files_without_checksums_are_read(file):
    """torch.serialization.set_crc32_options(False) leaves zeros."""
    data = bytearray(write_torch(file, {"w": WEIGHT}).read_bytes())
    checksum = zlib.crc32(WEIGHT.tobytes()).to_bytes(4, "little")
    file.write_bytes(data.replace(checksum, bytes(4)))
    np.testing.assert_array_equal(TorchZip(file).tensors()["w"].read(), WEIGHT)


def test_big_endian_files_are_refused(file):
    write_torch(file, {"w": WEIGHT}, members={"archive/byteorder": b"big"})
    assert "big-endian" in refusal(file)
