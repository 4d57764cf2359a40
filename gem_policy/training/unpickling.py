"""Arrays out of pickles and old PyTorch files, without running what they ask for.

A pickle is a program. This reader knows the few calls that arrays are made of and answers every
other one with an `Opaque`, an object that does nothing but remember its attributes. Nothing is
imported on behalf of a file, and no class of anybody else is ever built.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError

Array = NDArray[Any]

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001
ARCHIVE_LIMIT = 1 << 30  # bytes
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_TRANSPARENT = ("_modules", "_parameters", "_buffers")  # of torch modules; left out of names


class Opaque:
    """Stands for any object that is not an array; remembers its attributes and entries."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.attributes: dict[Any, Any] = {}

    def __new__(cls, *args: object, **kwargs: object) -> Opaque:
        """Build an empty one, whatever it is asked to be."""
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __call__(self, *args: object, **kwargs: object) -> Opaque:
        """Calling it, as a pickle may, gives another one."""
        return Opaque()

    def __setstate__(self, state: object) -> None:
        """Keep the attributes that a pickle sets."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.attributes.update(part)

    def __setitem__(self, key: Any, value: object) -> None:
        """Keep an entry, for pickled subclasses of dict."""
        self.attributes[key] = value

    def append(self, value: object) -> None:
        """Keep an item, for pickled subclasses of list."""
        self.attributes[len(self.attributes)] = value

    def extend(self, values: Any) -> None:
        """Keep items."""
        for value in values:
            self.append(value)


def read_pickle(data: bytes) -> Any:
    """Decode a pickle, or a file that `torch.save` wrote in its new or its old format.

    Args:
        data: The file.

    Returns:
        Plain containers, numbers, strings, numpy arrays (for tensors, too) and `Opaque` objects.

    Raises:
        DatasetError: if it is neither, is damaged, or asks for more memory than its own size.
    """
    file = io.BytesIO(data)
    try:
        if data[:2] == b"PK":
            return _read_torch_archive(file)
        first = _Reader(file, len(data)).load()
        saved = isinstance(first, int) and first == TORCH_MAGIC
        return _read_torch(file, len(data)) if saved else first
    except DatasetError:
        raise
    except Exception as error:  # a hostile or damaged pickle can fail in any way
        raise DatasetError(
            f"The file is not a readable pickle ({type(error).__name__}: {error}). Download it "
            "again and compare its checksum."
        ) from error


def named_arrays(value: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """All arrays inside of `value`, with dotted names."""
    if isinstance(value, np.ndarray):
        yield prefix, value
    elif isinstance(value, np.generic | float | int) and not isinstance(value, bool):
        yield prefix, np.asarray(value)
    else:
        if isinstance(value, Opaque):
            value = value.attributes
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            for key, inner in value.items():
                parts = [prefix, "" if key in _TRANSPARENT else str(key)]
                yield from named_arrays(inner, ".".join(part for part in parts if part))


class _Reader(pickle.Unpickler):
    """An unpickler that builds arrays and nothing else."""

    def __init__(self, file: io.BytesIO, limit: int) -> None:
        super().__init__(file, encoding="latin1")
        self.limit = limit
        self.storages: dict[str, Array] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The harmless stand-in for a global; never an import."""
        module = module.replace("numpy._core.", "numpy.core.")  # its name since numpy 2
        found = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch.storage", "_load_from_bytes"): read_pickle,
        }.get((module, name))
        if found is None and module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        return Opaque if found is None else found

    def persistent_load(self, pid: Any) -> Any:
        """A storage of a PyTorch file: memory that is filled when the file has been read."""
        if pid[0] == "module":
            return Opaque
        kind, key, count = pid[1], str(pid[2]), int(pid[4])
        if pid[0] != "storage" or not isinstance(kind, np.dtype):
            raise DatasetError(f"The file holds a storage of an unknown kind: {pid[:2]}.")
        if count < 0 or count * kind.itemsize > self.limit:
            raise DatasetError(
                f"The file claims a tensor of {count} numbers but has {self.limit} bytes."
            )
        return self.storages.setdefault(key, np.zeros(count, dtype=kind))

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *_: object) -> Array:
        if not isinstance(storage, np.ndarray):
            raise DatasetError("The file holds a tensor without a storage.")
        size, stride = tuple(map(int, size)), tuple(map(int, stride))
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        legal = all(n >= 0 for n in size) and all(s >= 0 for s in stride) and offset >= 0
        if not legal or (0 not in size and last >= storage.size):
            raise DatasetError("The file holds a tensor that reaches beyond its storage.")
        strides = tuple(s * storage.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _read_torch(file: io.BytesIO, limit: int) -> Any:
    reader = _Reader(file, limit)
    protocol = reader.load()
    if protocol != TORCH_PROTOCOL:
        raise DatasetError(f"Unknown protocol {protocol} of torch.save.")
    _Reader(file, limit).load()  # about the machine that wrote it
    main = _Reader(file, limit)
    value = main.load()
    for key in _Reader(file, limit).load():
        storage = main.storages[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        content = file.read(storage.nbytes)
        if count != storage.size or len(content) != storage.nbytes:
            raise DatasetError("The file ends inside of a tensor; download it again.")
        storage[:] = np.frombuffer(content, dtype=storage.dtype)
    return value


def _read_torch_archive(file: io.BytesIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        folder = next(name for name in sizes if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if sum(sizes.values()) > ARCHIVE_LIMIT:
            raise DatasetError(f"The archive unpacks to more than {ARCHIVE_LIMIT} bytes.")
        main = _Reader(io.BytesIO(archive.read(f"{folder}data.pkl")), sum(sizes.values()))
        value = main.load()
        for key, storage in main.storages.items():
            content = archive.read(f"{folder}data/{key}")
            storage[:] = np.frombuffer(content, dtype=storage.dtype, count=storage.size)
    return value


def _empty_array(subtype: Any, shape: Any, dtype: Any) -> Array:
    if subtype is not np.ndarray or tuple(shape) != (0,):
        raise DatasetError("The file builds an array in an unknown way.")
    return _Guarded((0,), dtype=np.int8)


class _Guarded(np.ndarray[Any, Any]):
    """An array that takes its content from a pickle only if it holds numbers."""

    def __setstate__(self, state: Any) -> None:
        if state[2].hasobject:
            raise DatasetError("The file holds an array of objects; only numbers are read.")
        super().__setstate__(state)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: object) -> Array:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or order not in ("C", "F"):
        raise DatasetError("The file builds an array in an unknown way.")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise DatasetError("The file holds a scalar that is not a number.")
    raw = content.encode("latin1") if isinstance(content, str) else bytes(content)
    return np.frombuffer(raw, dtype=dtype, count=1)[0]


def _dtype(name: Any, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(str(name))
    if dtype.hasobject:
        raise DatasetError("The file holds an array of objects; only numbers are read.")
    return dtype


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise DatasetError(f"The file asks for the encoding {encoding!r}.")
    return text.encode(encoding)


def _parameter(data: Any, *_: object) -> Any:
    return data
