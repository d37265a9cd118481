"""Containers of tensors, made without the libraries whose formats they are."""

import io
import json

import numpy as np

CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def safetensors(arrays, dtypes=None):
    """Return a file of that format; `dtypes` are the names of types that numpy does not have."""
    header, parts, end = {}, [], 0
    for name, array in arrays.items():
        data = array.tobytes()
        dtype = (dtypes or {}).get(name, array.dtype.name)
        header[name] = {"dtype": CODES[dtype], "shape": array.shape, "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *parts])


def npy(array):
    """Return a file of that format."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()
