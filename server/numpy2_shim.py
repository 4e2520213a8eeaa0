"""Lets a Python-backend stub that was built with pybind11 2.10 work with NumPy 2. Runs inside the stub, alone.

Holds a repair for one defect; everything else of the stub is used as it is. It is copied beside the unpacked stub as
`longrec_numpy2_shim.py`, and the copy of `triton_python_backend_utils.py` there imports it.

The defect: stubs before Triton 24.11 read a dtype's `itemsize` where NumPy 1 had it and find 0 in NumPy 2. So every
array that the stub makes over a tensor has strides of 0 (each element reads as the first one; a BYTES input can't even
be split and ends the stub), and every array that it is given counts 0 bytes. The repair: the stub gets a copy of
NumPy's function table in which `PyArray_NewFromDescr` ignores the strides it is passed (the stub only ever means
C-contiguous ones), and `pb_utils.Tensor(name, array)` goes through DLPack, which doesn't ask the dtype.

Remove this file when the development wheel's server is 24.11 or later.
"""

import ctypes
import math
from typing import Any

import c_python_backend_utils
import numpy as np

__all__: list[str] = []

# Index in NumPy's table, and its length: numpy/_core/include/numpy/__multiarray_api.h. pybind11 2.10 reads up to 282.
NEW_FROM_DESCR, TABLE_LENGTH = 94, 300
USED_CAPSULE = b"used_dltensor"  # kept here: a capsule points at its name and doesn't copy it


def _contiguous_arrays() -> tuple[Any, ...]:
    """Hand the stub the changed table. Returns what must outlive the process's last array."""
    from numpy.core import multiarray  # where pybind11 looks the table up, at its first array: not yet

    pointer, table_type = ctypes.c_void_p, ctypes.c_void_p * TABLE_LENGTH
    get_pointer = ctypes.PYFUNCTYPE(pointer, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, pointer, ctypes.c_char_p, pointer)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    table = table_type.from_buffer_copy(table_type.from_address(get_pointer(multiarray._ARRAY_API, None)))
    signature = ctypes.PYFUNCTYPE(
        pointer, pointer, pointer, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int, pointer
    )
    own_reference = ctypes.PYFUNCTYPE(None, pointer)(("Py_IncRef", ctypes.pythonapi))
    original = ctypes.cast(ctypes.c_void_p(table[NEW_FROM_DESCR]), signature)

    def new_from_descr(
        kind: int, descr: int, ndim: int, dims: int, strides: int, data: int, flags: int, owner: int
    ) -> Any:
        try:
            return original(kind, descr, ndim, dims, None, data, flags, owner)
        except (ValueError, MemoryError):
            # A shape whose size in bytes overflows to 0 passes the server's check of the contents. An exception from
            # here would end the stub; an array without dimensions is refused by the model, which expects some.
            own_reference(descr)  # the call steals one
            return original(kind, descr, 0, dims, None, None, 0, None)

    callback = signature(new_from_descr)
    table[NEW_FROM_DESCR] = ctypes.cast(callback, pointer).value
    multiarray._ARRAY_API = new_capsule(ctypes.addressof(table), None, None)
    return table, callback


def _tensors_through_dlpack() -> None:
    """Change what `pb_utils.Tensor(name, array)` does; `Tensor.from_dlpack` stays as it is."""
    set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    from_dlpack = c_python_backend_utils.Tensor.from_dlpack

    def new(cls: type, name: str, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype.kind in "OSU":
            raise TypeError(
                f"{name}: expected a numeric array, got {array.dtype}: this stub can't send BYTES on NumPy 2"
            )
        array = np.require(array, requirements=["C", "W"])  # NumPy exports no read-only array through DLPack
        if not array.size:  # then NumPy calls any strides contiguous; the stub insists on products of the dims
            strides = [math.prod(array.shape[axis + 1 :]) * array.itemsize for axis in range(array.ndim)]
            array = np.lib.stride_tricks.as_strided(array, strides=strides)
        capsule = array.__dlpack__()
        tensor = from_dlpack(name, capsule)
        set_name(capsule, USED_CAPSULE)  # the stub leaves a name that NumPy doesn't know and complains about
        return tensor

    c_python_backend_utils.Tensor.__new__ = new
    c_python_backend_utils.Tensor.__init__ = lambda self, name, array: None  # `new` returns it complete


if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    _keep = _contiguous_arrays()
    _tensors_through_dlpack()
