from __future__ import annotations

import collections
import io
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gem_policy.errors import DatasetError
from gem_policy.training.unpickling import Opaque, named_arrays, read_pickle

NUMBERS = st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_])


@given(
    value=NUMBERS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=3))),
    protocol=st.integers(2, 5),
)
def test_arrays_survive(value: np.ndarray, protocol: int) -> None:
    again = read_pickle(pickle.dumps({"a": [value, value.T]}, protocol))
    for got, expected in zip(again["a"], (value, value.T), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=3)))
def test_tensors_of_files_new_and_old_survive_as_arrays(value: np.ndarray) -> None:
    tensors = {"whole": torch.from_numpy(value), "part": torch.from_numpy(value)[-1:]}
    for new in (True, False):
        file = io.BytesIO()
        torch.save(tensors, file, _use_new_zipfile_serialization=new)
        again = read_pickle(file.getvalue())
        np.testing.assert_array_equal(again["whole"], value)
        np.testing.assert_array_equal(again["part"], value[-1:])


def test_a_pickled_tensor_survives_as_an_array() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    again = read_pickle(pickle.dumps({"parameter": torch.nn.Parameter(tensor), "plain": tensor}))
    np.testing.assert_array_equal(again["parameter"], tensor.numpy())
    np.testing.assert_array_equal(again["plain"], tensor.numpy())


def test_scalars_and_ordered_dicts_survive() -> None:
    value = collections.OrderedDict(a=np.float64(2.5), b=np.int32(3), c="text", d=[None, True])
    assert read_pickle(pickle.dumps(value)) == value


def test_bytes_of_python_2_are_read() -> None:
    # As Python 2 wrote the string "\xff" inside of an array of numbers.
    array = np.array([255, 1], dtype=np.uint8)
    assert read_pickle(pickle.dumps(array, protocol=0)).tolist() == [255, 1]


def test_objects_of_other_people_are_remembered_but_not_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []

    class Policy:
        def __setstate__(self, state: Any) -> None:
            built.append(state)
            self.__dict__.update(state)

    module = types.ModuleType("somebodys_module")
    module.Policy = Policy  # type: ignore[attr-defined]
    Policy.__module__, Policy.__qualname__ = "somebodys_module", "Policy"
    monkeypatch.setitem(sys.modules, "somebodys_module", module)
    policy = Policy()
    policy.__dict__ = {"_modules": {"layer": {"weight": np.eye(2)}}, "size": 3}
    data = pickle.dumps(policy)
    read = read_pickle(data)
    assert isinstance(read, Opaque) and built == []
    assert {name: array.shape for name, array in named_arrays(read)} == {
        "layer.weight": (2, 2),
        "size": (),
    }


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_never_made(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    for attack in (
        Call(os.remove, str(victim)),
        Call(os.system, f"rm {victim}"),
        Call(eval, f"__import__('os').remove({str(victim)!r})"),
        Call(exec, f"import os; os.remove({str(victim)!r})"),
        Call(getattr, os, "remove") if protocol > 5 else Call(print, "called"),
        Call(torch.load, str(victim)),
        Call(np.load, str(victim), None, True),
    ):
        read = read_pickle(pickle.dumps([attack, np.ones(2)], protocol))
        assert isinstance(read[0], Opaque)
        assert read[1].tolist() == [1.0, 1.0]
    assert victim.exists()


def test_a_call_on_an_opaque_object_gives_another_one() -> None:
    nested = Call(Call, Call(os.getcwd), 1)
    assert isinstance(read_pickle(pickle.dumps(nested)), Opaque)


def test_arrays_of_objects_are_refused() -> None:
    for value in (np.array([object()], dtype=object), np.array([{}, 1], dtype=object)):
        with pytest.raises(DatasetError, match="objects"):
            read_pickle(pickle.dumps(value))


def saved_with(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """An old file of a tensor with made-up strides over a storage of 4 numbers."""
    file = io.BytesIO()
    torch.save(torch.zeros(4), file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    # Offset, size and stride follow each other in the pickle: K\0 K\4 \x85 q. K\1 \x85
    start = data.index(b"K\x00K\x04\x85")
    stop = data.index(b"K\x01\x85", start) + 3
    numbers = b"".join(b"J" + int(n).to_bytes(4, "little", signed=True) for n in (offset,))
    for values in (size, stride):
        packed = b"".join(b"J" + int(n).to_bytes(4, "little", signed=True) for n in values)
        numbers += b"(" + packed + b"t"
    return data[:start] + numbers + data[stop:]


def test_a_tensor_inside_of_its_storage_is_read() -> None:
    assert read_pickle(saved_with((2, 2), (2, 1))).shape == (2, 2)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((5,), (1,), 0), ((2,), (4,), 0), ((4,), (1,), 1), ((2,), (-1,), 0), ((2,), (1,), -1)],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(DatasetError, match="beyond its storage"):
        read_pickle(saved_with(size, stride, offset))


def _torch_file(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


# Written once: the older kind holds an address, and so has not the same length every time.
FILES = [_torch_file(True), _torch_file(False), pickle.dumps({"a": np.arange(3.0)}, 4)]


@given(st.data())
def test_damage_is_a_dataset_error(draw: st.DataObject) -> None:
    whole = draw.draw(st.sampled_from(FILES))
    cut = whole[: draw.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(DatasetError):
        read_pickle(cut)


@given(st.binary(max_size=60))
def test_noise_is_read_or_refused(noise: bytes) -> None:
    try:
        read = read_pickle(noise)
    except DatasetError as refusal:
        assert str(refusal)
    else:
        assert isinstance(read, Opaque) or not callable(read)
