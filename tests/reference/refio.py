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
