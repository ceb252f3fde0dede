"""Tensors of numbers in a file that torch.save has written, without torch: a zip with a pickle and the tensors' bytes.
Nothing but tensors and plain containers is made, whatever the pickle asks for."""

import array
import collections
import pickle
import sys
import zipfile

# Storage class: array's type code.
STORAGES = {"ByteStorage": "B", "CharStorage": "b", "ShortStorage": "h", "IntStorage": "i", "LongStorage": "q",
            "FloatStorage": "f", "DoubleStorage": "d"}


def _tensor(storage, offset, size, stride, *_):
    """Nested lists of the shape `size`; the number itself for a scalar."""
    def part(at, dimension):
        if dimension == len(size):
            return storage[at]
        return [part(at + i * stride[dimension], dimension + 1) for i in range(size[dimension])]
    return part(offset, 0)


class _Unpickler(pickle.Unpickler):

    def __init__(self, file, storage_bytes):
        super().__init__(file)
        self._storage_bytes = storage_bytes

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not among what is read (tensors of whole numbers or floats)")

    def persistent_load(self, pid):
        _, storage, key, _, count = pid
        values = array.array(STORAGES[storage])
        values.frombytes(self._storage_bytes(key))
        if len(values) < count:
            raise pickle.UnpicklingError(f"storage {key} has {len(values)} of {count} numbers")
        return values


def load(path):
    """What torch.load would give, with nested lists for tensors. ValueError when it is not such a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [entry for entry in archive.namelist() if entry.endswith("/data.pkl")]
            folder = name.removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
                raise ValueError(f"{path} was written on a machine of the other byte order")
            with archive.open(name) as file:
                return _Unpickler(file, lambda key: archive.read(f"{folder}data/{key}")).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, IndexError) as error:
        raise ValueError(f"{path} is not a file of torch.save that can be read: {error}") from error
