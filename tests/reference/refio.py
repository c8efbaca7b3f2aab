"""Helpers shared by the reference scripts: where files go and how they are written."""

import json
import struct
from pathlib import Path

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"
FIXTURES = ROOT / "tests" / "fixtures"


def save(path, tensors, metadata):
    """Write a safetensors file whose bytes depend on nothing but the contents.

    `metadata` maps names to text, or to values that are stored as JSON text. The library keeps the
    metadata in a hash map of random order, so the header is written again with the names sorted.
    """
    # Unlike ascontiguousarray, this leaves scalars without dimensions.
    tensors = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    text = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in metadata.items()
    }
    raw = safetensors.numpy.save(tensors, text)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])
    # The file must read back as it was given.
    for name, value in safetensors.numpy.load_file(path).items():
        assert value.dtype == tensors[name].dtype and value.shape == tensors[name].shape, name
        assert value.tobytes() == tensors[name].tobytes(), name
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes, {len(tensors)} tensors")


# numpy's names of element types (ml_dtypes' among them): the name in safetensors, and bits.
TENSOR_TYPES = {
    "bool": ("BOOL", 8),
    **{f"{sign}int{bits}": (f"{sign.upper() or 'I'}{bits}", bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (f"F{bits}", bits) for bits in (16, 32, 64)},
    "bfloat16": ("BF16", 16),
    "float8_e4m3fn": ("F8_E4M3", 8),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 8),
    "float8_e5m2": ("F8_E5M2", 8),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 8),
    "float8_e8m0fnu": ("F8_E8M0", 8),
    "float6_e2m3fn": ("F6_E2M3", 6),
    "float6_e3m2fn": ("F6_E3M2", 6),
    "float4_e2m1fn": ("F4", 4),
}


def store_tensors(path, tensors, metadata=None):
    """Write a safetensors file of every type that the format has, which the library's numpy side has not.

    `metadata` maps names to text.
    """
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, array in tensors.items():
        stored, bits = TENSOR_TYPES[array.dtype.name]
        array = np.ascontiguousarray(array).reshape(-1)
        if bits < 8:
            codes = array.view(np.uint8)
            raw = np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")
        else:
            raw = array
        start, data = len(data), data + raw.tobytes()
        header[name] = {"dtype": stored, "shape": list(tensors[name].shape), "data_offsets": [start, len(data)]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def load_tensors(path):
    """Read what `store_tensors` writes."""
    import ml_dtypes  # registers its names; only the scripts that read such types need it

    names = {stored: (name, bits) for name, (stored, bits) in TENSOR_TYPES.items()}
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, bits = names[entry["dtype"]]
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        piece = np.frombuffer(data[slice(*entry["data_offsets"])], np.uint8)
        if bits < 8:
            codes = np.unpackbits(piece, bitorder="little").reshape(-1, bits)
            piece = np.packbits(codes, axis=1, bitorder="little").reshape(-1)
        tensors[name] = piece.view(dtype).reshape(entry["shape"])
    return tensors
