"""Every code of every small float, and how numbers are rounded to them.

Values and rounding come from ml_dtypes, saturation from onnx. FLOAT8E8M0 is worked out here in exact
fractions after the table in the documentation of ONNX Cast: the reference evaluator maps infinity to
NaN even when it saturates, zero to 2^-127 even when it doesn't, and 2^-127, rounded up, to 2^-126.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np
from onnx.numpy_helper import saturate_cast
from refio import FIXTURES, save

FORMATS = {
    "f8e4m3": (8, ml_dtypes.float8_e4m3fn),
    "f8e4m3fnuz": (8, ml_dtypes.float8_e4m3fnuz),
    "f8e5m2": (8, ml_dtypes.float8_e5m2),
    "f8e5m2fnuz": (8, ml_dtypes.float8_e5m2fnuz),
    "f6e2m3": (6, ml_dtypes.float6_e2m3fn),
    "f6e3m2": (6, ml_dtypes.float6_e3m2fn),
    "f4e2m1": (4, ml_dtypes.float4_e2m1fn),
}
EVERYWHERE = np.array(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 1e9, -1e9, 3.4e38, -3.4e38, 1e-9, -1e-9, 1e-44, -1e-44], np.float32
)


def around(values):
    """The values, the points halfway between them and beyond the last, and the neighbours of all these."""
    values = np.unique(values[np.isfinite(values)]).astype(np.float64)
    halfway = (values[1:] + values[:-1]) / 2
    beyond = values[[0, -1]] * 2 - values[[1, -2]]
    points = np.concatenate([values, halfway, beyond, (values[[0, -1]] + beyond) / 2]).astype(np.float32)
    up, down = (np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf))
    return np.concatenate([points, up, down])


def scale_code(x, mode, saturate):
    """The code of `x` in FLOAT8E8M0."""
    if np.isnan(x):
        return 255
    low, high = (0, 254) if saturate else (255, 255)
    if np.isinf(x):
        return high
    x = abs(Fraction(float(x)))
    if x == 0:
        return low
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent -= x < Fraction(2) ** exponent
    rest = x / Fraction(2) ** exponent
    assert 1 <= rest < 2
    if (mode == "up" and rest > 1) or (mode == "nearest" and rest >= Fraction(3, 2)):
        exponent += 1
    return low if exponent < -127 else high if exponent > 127 else exponent + 127


def main():
    random = np.random.default_rng(5)
    tensors = {}
    for name, (bits, dtype) in FORMATS.items():
        values = np.arange(1 << bits, dtype=np.uint8).view(dtype).astype(np.float32)
        largest = np.nanmax(values[np.isfinite(values)])
        inputs = np.concatenate(
            [EVERYWHERE, around(values), random.uniform(-1.2, 1.2, 500).astype(np.float32) * largest]
        )
        if bits == 8:  # the others have no NaN, of either sign
            inputs = np.append(inputs, np.array([0xFFC00000], np.uint32).view(np.float32))
        tensors[f"{name}.values"] = values
        tensors[f"{name}.inputs"] = inputs
        tensors[f"{name}.saturated"] = saturate_cast(inputs, np.dtype(dtype)).view(np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):
            tensors[f"{name}.unsaturated"] = inputs.astype(dtype).view(np.uint8)
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    inputs = np.concatenate([EVERYWHERE, around(values), np.exp(random.uniform(-88, 88, 500)).astype(np.float32)])
    inputs = np.unique(np.abs(inputs))
    tensors["f8e8m0.values"] = values
    tensors["f8e8m0.inputs"] = inputs
    for mode in ("up", "down", "nearest"):
        for suffix, saturate in (("saturated", True), ("unsaturated", False)):
            codes = [scale_code(x, mode, saturate) for x in inputs]
            tensors[f"f8e8m0.{mode}.{suffix}"] = np.array(codes, np.uint8)
    save(FIXTURES / "small_floats.safetensors", tensors, {"formats": [*FORMATS, "f8e8m0"]})


if __name__ == "__main__":
    main()
