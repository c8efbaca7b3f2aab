"""Quantized values by the ONNX rules: QuantizeLinear, DynamicQuantizeLinear and integer layers.

Run from the repository root: python tests/reference/quant_fixtures.py

Writes tests/fixtures/quant.safetensors. Values come from the onnx package's reference evaluator
and are compared with onnxruntime; a case on which the two differ is printed and left out. The sums
of the integer layers are computed here in 64-bit integers and compared with both. The metadata
holds JSON text under the name of every case.
"""

import zlib

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import refio

OPSET = 21
TYPES = {
    "uint8": (TensorProto.UINT8, np.uint8, 0, 255),
    "int8": (TensorProto.INT8, np.int8, -128, 127),
    "uint4": (TensorProto.UINT4, np.uint8, 0, 15),
    "int4": (TensorProto.INT4, np.int8, -8, 7),
}

tensors = {}
metadata = {}
excluded = []


def f32(values):
    return np.asarray(values, dtype=np.float32)


def random(name, *shape):
    """Standard normal values that depend on the name only."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def record(case, parameters, **values):
    assert case not in metadata
    for name, value in values.items():
        tensors[f"{case}.{name}"] = value
    metadata[case] = parameters


def identical(left, right):
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left, right, strict=True)
    )


def run_both(nodes, inputs, outputs, initializers=()):
    """The outputs of a small graph by the reference evaluator and by onnxruntime."""
    graph = helper.make_graph(
        nodes,
        "case",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        list(initializers),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    )
    reference = ReferenceEvaluator(model).run(None, inputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # The graph is to be computed as it is written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return reference, session.run(None, inputs)


def agree(case, reference, runtime):
    """Whether the two agree bit for bit; if not, say where, so that the case is left out."""
    if identical(reference, runtime):
        return True
    print(f"{case}: LEFT OUT, reference evaluator and onnxruntime differ")
    for a, b in zip(reference, runtime):
        if a.tobytes() != b.tobytes():
            where = np.flatnonzero(a.ravel() != b.ravel())
            print(f"  at {where[:8]}: {a.ravel()[where[:8]]} against {b.ravel()[where[:8]]}")
    excluded.append(case)
    return False


# --- DynamicQuantizeLinear ------------------------------------------------------------------------


def dynamic_quantize(x):
    """((codes, scale, zero point) by the reference evaluator, the same by onnxruntime)."""
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero_point"])
    outputs = {
        "codes": TensorProto.UINT8,
        "scale": TensorProto.FLOAT,
        "zero_point": TensorProto.UINT8,
    }
    return run_both([node], {"x": x}, outputs)


def agreed_quantize(x):
    reference, runtime = dynamic_quantize(x)
    assert identical(reference, runtime)
    return reference


def dql_cases():
    """(name, what it is about, x)"""
    yield "dql_0", "onnx test suite", f32([0, 2, -3, -2.5, 1.34, 0.5])
    yield "dql_1", "onnx test suite, maximum adjusted", f32([-1, -2.1, -1.3, -2.5, -3.34, -4])
    x = f32([[1, 2.1, 1.3, 2.5], [3.34, 4.0, 1.5, 2.6], [3.9, 4.0, 3.0, 2.345]])
    yield "dql_2", "onnx test suite, minimum adjusted", x
    count = 3
    for size in (1, 7, 16, 33, 500):
        for magnitude in (1e-6, 1.0, 1e6):
            name = f"dql_{count}"
            yield name, f"mixed signs, about {magnitude:g}", random(name, size) * f32(magnitude)
            count += 1
    for sign, text in ((1, "positive"), (-1, "negative")):
        for size in (7, 33, 130):
            name = f"dql_{count}"
            yield name, f"one-sided {text}", f32(sign) * np.abs(random(name, size)) + f32(sign)
            count += 1
    # With a range of 255 scales, x / scale takes every multiple of one half.
    half = np.arange(0, 511, dtype=np.float32) / f32(2)
    for text, x in (
        ("ties, scale 1, zero point 0", half),
        ("ties, scale 1, zero point 100", half - f32(100)),
        ("ties, scale 1, zero point 255", half - f32(255)),
        ("ties, the zero point itself is a tie, 100.5", half - f32(100.5)),
        ("ties, the zero point itself is a tie, 101.5", half - f32(101.5)),
        ("ties, scale 2^-10", (half - f32(37)) * f32(2.0**-10)),
        ("nearly ties, scale about 0.3", half * f32(0.3)),
        ("nearly ties, scale about 0.0071", (half - f32(90)) * f32(0.0071)),
        ("nearly ties, scale about 1234.5", (half - f32(180)) * f32(1234.5)),
        ("all equal, positive", np.full(5, 5, np.float32)),
        ("all equal, negative", np.full(5, -5, np.float32)),
        ("one outlier", np.append(random("outlier", 32), f32(1000))),
        ("negative zeros", f32([-0.0, 1.0, -0.0, 2.0])),
        ("subnormal", f32([1e-40, -1e-40, 3e-39])),
        ("scale near the smallest normal", f32([-1.0, 0.5, 0.25, 1.0]) * f32(2.0**-118)),
        ("range near the largest float", f32([-1.5e38, 1e38, 0.0, 5e37])),
    ):
        yield f"dql_{count}", text, x
        count += 1
    # Known to differ: the scale is 1 / 255 by the reference evaluator, 1 by onnxruntime.
    yield f"dql_{count}", "all zero", np.zeros(5, np.float32)


def dynamic_quantize_linear():
    reciprocal = 0
    for case, about, x in dql_cases():
        with np.errstate(all="ignore"):
            reference, runtime = dynamic_quantize(x)
        if not agree(case, reference, runtime):
            continue
        codes, scale, zero_point = reference
        with np.errstate(all="ignore"):
            other = np.rint(x * (f32(1) / scale)) + f32(zero_point)
        reciprocal += int((np.clip(other, 0, 255) != codes).sum())
        record(
            case,
            {"op": "dynamic_quantize_linear", "about": about},
            x=x,
            scale=scale.reshape(1),
            zero_point=zero_point.reshape(1),
            codes=codes,
        )
    print(f"DynamicQuantizeLinear: x * (1 / scale) would give {reciprocal} other codes")


# --- QuantizeLinear and DequantizeLinear ----------------------------------------------------------


def quantize(x, scale, zero_point, dtype, axis):
    """((codes, dequantized) by the reference evaluator, the same by onnxruntime).

    4-bit codes are cast to 8 bits inside the graph. `axis` None is per tensor: scalar scale.
    """
    kind, numpy_type, low, high = TYPES[dtype]
    wide = TensorProto.INT8 if numpy_type is np.int8 else TensorProto.UINT8
    shape = () if axis is None else scale.shape
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **along),
        helper.make_node("Cast", ["q"], ["codes"], to=wide),
    ]
    flat = [int(z) for z in np.ravel(zero_point)]
    assert all(low <= z <= high for z in flat)
    initializers = [
        numpy_helper.from_array(np.reshape(scale, shape), "s"),
        helper.make_tensor("z", kind, shape, flat),
    ]
    outputs = {"codes": wide, "y": TensorProto.FLOAT}
    return run_both(nodes, {"x": x}, outputs, initializers)


def ql_cases():
    """(what it is about, dtype, axis, scale, zero point, x)"""
    suite = f32([0, 2, 3, 1000, -254, -1000])
    yield "onnx test suite", "uint8", None, [2], [128], suite
    ties = f32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    yield "ties: round, then add the zero point", "int8", None, [1], [1], ties
    yield "ties: round, then add the zero point", "uint8", None, [1], [101], ties
    yield "division, not the reciprocal", "int8", None, [0.00214854861], [0], f32([0.273939937])
    yield "division, not the reciprocal", "uint8", None, [0.00214854861], [0], f32([0.273939937])
    yield "onnx test suite, per axis", "uint8", 1, [2, 4, 5], [84, 24, 196], f32(
        [
            [
                [[-162, 10], [-100, 232], [-20, -50]],
                [[-76, 0], [0, 252], [32, -44]],
                [[245, -485], [-960, -270], [-375, -470]],
            ]
        ]
    )
    every = np.arange(-300, 301, dtype=np.float32) / f32(2)
    for dtype, z in (("int8", 0), ("int8", -7), ("uint8", 128), ("uint8", 3)):
        x = every[np.abs(every) < 140] if dtype == "int8" else every
        yield "every half step, with saturation", dtype, None, [1], [z], x
        if z % 2 == 1:
            yield "nearly ties, scale 0.1", dtype, None, [0.1], [z], x * f32(0.1)
    large = f32([1e9, -1e9, 2.0e9, -2.0e9, 1e20, -1e20, 3e38, -3e38, 0.0, -0.0, 1e-40])
    for dtype, z in (("int8", 5), ("uint8", 5)):
        yield "saturation far beyond the range", dtype, None, [0.5], [z], large[:4] / f32(4)
    x = random("ql random", 4, 5, 3) * f32(3)
    for dtype, zs in (("int8", [0, -128, 127, 3, -20]), ("uint8", [128, 0, 255, 7, 100])):
        yield "random", dtype, None, [0.02], [zs[3]], x
        yield "random, saturating", dtype, None, [0.005], [zs[3]], x
        yield "random", dtype, 0, [0.03, 0.001, 0.5, 0.07], zs[:4], x
        yield "random", dtype, 1, [0.03, 0.001, 0.5, 0.07, 0.011], zs, x
    half = np.arange(-40, 41, dtype=np.float32) / f32(2)
    for dtype, zs in (("int4", [0, -8, 7, 3, -2]), ("uint4", [8, 0, 15, 7, 3])):
        yield "every half step, with saturation", dtype, None, [1], [zs[0]], half
        yield "every half step, with saturation", dtype, None, [1], [zs[3]], half
        yield "random", dtype, None, [0.6], [zs[4]], x
        yield "random", dtype, 0, [0.6, 0.1, 2.0, 0.33], zs[:4], x
        yield "random", dtype, 1, [0.6, 0.1, 2.0, 0.33, 0.9], zs, x
    # Known to differ: the reference evaluator converts the quotient to 32 bits before it saturates.
    for dtype in ("int8", "uint8"):
        yield "quotient beyond 32-bit integers", dtype, None, [0.5], [5], large
        yield "infinities", dtype, None, [0.5], [5], f32([np.inf, -np.inf, 1.0])


def quantize_linear():
    for number, (about, dtype, axis, scale, zero_point, x) in enumerate(ql_cases()):
        case = f"ql_{number}"
        scale = f32(scale)
        zero_point = np.asarray(zero_point, TYPES[dtype][1])
        with np.errstate(all="ignore"):
            reference, runtime = quantize(x, scale, zero_point, dtype, axis)
        if not agree(f"{case} ({about}, {dtype})", reference, runtime):
            continue
        codes, dequantized = reference
        record(
            case,
            {"op": "quantize_linear", "about": about, "dtype": dtype, "axis": axis},
            x=x,
            scale=scale,
            zero_point=zero_point,
            codes=codes,
            dequantized=dequantized,
        )


# --- Asymmetric int8, and constants ---------------------------------------------------------------


def asymmetric_int8(x):
    """(codes i8, scale, zero point): DynamicQuantizeLinear, a rule for uint8, on -128..127."""
    low, high = min(x.min(), f32(0)), max(x.max(), f32(0))
    scale = (high - low) / f32(255)
    zero_point = np.rint(np.clip(f32(-128) - low / scale, -128, 127)).astype(np.int8)
    # The same grid as of uint8, 128 codes lower.
    _, unsigned_scale, unsigned_zero_point = agreed_quantize(x)
    assert scale == unsigned_scale and int(zero_point) == int(unsigned_zero_point) - 128
    reference, runtime = quantize(x, scale, zero_point, "int8", None)
    assert identical(reference, runtime)
    return reference[0], scale, zero_point


def asymmetric():
    half = np.arange(0, 511, dtype=np.float32) / f32(2)
    for number, (about, x) in enumerate(
        (
            ("mixed signs", random("asym mixed", 200)),
            ("mixed signs, large", random("asym large", 33) * f32(1e6)),
            ("one-sided positive", np.abs(random("asym positive", 33)) + f32(1)),
            ("one-sided negative", -np.abs(random("asym negative", 33)) - f32(1)),
            ("ties, zero point -128", half),
            ("ties, zero point -28", half - f32(100)),
            ("ties, the zero point itself is a tie", half - f32(101.5)),
            ("constant, positive", np.full(3, 5, np.float32)),
            ("constant, negative", np.full(3, -5, np.float32)),
        )
    ):
        codes, scale, zero_point = asymmetric_int8(x)
        record(
            f"asym_{number}",
            {"op": "asymmetric_int8", "about": about},
            x=x,
            scale=scale.reshape(1),
            zero_point=zero_point.reshape(1),
            codes=codes,
        )


def constants():
    """Constants that the rule gives back exactly, and some for which 255 * (c / 255) != c."""
    counts = {True: 0, False: 0}
    for number, constant in enumerate(random("constants", 4000) * f32(100)):
        x = np.full(2, constant)
        codes, scale, zero_point = agreed_quantize(x)
        dequantized = (codes.astype(np.float32) - f32(zero_point)) * scale
        exact = bool((dequantized == x).all())
        if counts[exact] < 6:
            record(
                f"constant_{number}",
                {"op": "constant", "exact": exact},
                x=x,
                scale=scale.reshape(1),
                zero_point=zero_point.reshape(1),
                codes=codes,
            )
        counts[exact] += 1
    print(f"constants: {counts[True]} come back exactly, {counts[False]} do not")


# --- Symmetric int8 weights per output channel ----------------------------------------------------


def symmetric_weight(weight):
    """(codes i8, scale f32 [channels]): scale = amax / 127, or 1 for a channel of zeros."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    scale = np.where(largest > 0, largest / f32(127), f32(1)).astype(np.float32)
    reference, runtime = quantize(weight, scale, np.zeros(len(scale), np.int8), "int8", 0)
    assert identical(reference, runtime)
    assert reference[0].min() >= -127
    return reference[0], scale


def symmetric_weights():
    for number, shape in enumerate(([8, 3, 3, 3], [16, 20])):
        case = f"wsym_{number}"
        weight = random(case, *shape)
        magnitudes = np.exp(random(f"{case} magnitudes", shape[0]))
        weight *= magnitudes.reshape(-1, *[1] * (len(shape) - 1))
        weight[5] = 0
        codes, scale = symmetric_weight(weight)
        record(
            case,
            {"op": "symmetric_weight", "dtype": "int8", "axis": 0},
            weight=weight,
            scale=scale,
            codes=codes,
        )


# --- Integer layers with dynamic quantization -----------------------------------------------------


def conv_sums(x, zero_point, weight, stride, padding, dilation, groups):
    """Exact sums of (x - zero_point) * weight over one image x [C,H,W]; padding adds nothing."""
    top, left, bottom, right = padding
    centred = x.astype(np.int64) - int(zero_point)
    centred = np.pad(centred, ((0, 0), (top, bottom), (left, right)))
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    out_h = (centred.shape[1] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (centred.shape[2] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    sums = np.zeros((out_channels, out_h, out_w), np.int64)
    for channel in range(out_channels):
        first = channel // (out_channels // groups) * in_channels
        for i in range(in_channels):
            for ky in range(kernel_h):
                for kx in range(kernel_w):
                    y, z = ky * dilation[0], kx * dilation[1]
                    window = centred[
                        first + i,
                        y : y + (out_h - 1) * stride[0] + 1 : stride[0],
                        z : z + (out_w - 1) * stride[1] + 1 : stride[1],
                    ]
                    sums[channel] += window * int(weight[channel, i, ky, kx])
    return sums


def check_sums(case, sums, reference, runtime):
    """The evaluators' opinion of exact integer sums."""
    for who, other in (("reference evaluator", reference), ("onnxruntime", runtime)):
        if not np.array_equal(sums, other):
            count = int((sums != other).sum())
            print(f"{case}: {who} has {count} other sums of {sums.size} (ours are exact)")


def dynamic_conv(
    number,
    x,
    out_channels,
    kernel,
    *,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
    offset=0.0,
    about,
):
    case = f"conv_dyn_{number}"
    x = random(f"{case}.x", *x) + f32(offset)
    # Images of unlike range: quantizing the batch as a whole would show.
    x[1] *= f32(0.3)
    weight = random(f"{case}.weight", out_channels, x.shape[1] // groups, *kernel) * f32(0.2)
    weight *= np.exp(random(f"{case}.magnitudes", out_channels)).reshape(-1, 1, 1, 1)
    bias = random(f"{case}.bias", out_channels)
    weight_codes, weight_scale = symmetric_weight(weight)
    codes, scales, zero_points, sums, outputs = [], [], [], [], []
    for image in x:
        code, scale, zero_point = agreed_quantize(image[None])
        exact = conv_sums(code[0], zero_point, weight_codes, stride, padding, dilation, groups)
        node = helper.make_node(
            "ConvInteger",
            ["x", "w", "z"],
            ["acc"],
            strides=list(stride),
            pads=list(padding),
            dilations=list(dilation),
            group=groups,
        )
        check_sums(
            case,
            exact[None],
            *(
                result[0]
                for result in run_both(
                    [node],
                    {"x": code, "w": weight_codes, "z": zero_point},
                    {"acc": TensorProto.INT32},
                )
            ),
        )
        codes.append(code[0])
        scales.append(scale)
        zero_points.append(zero_point)
        sums.append(exact)
        outputs.append(
            dequantized_sums(exact, scale, weight_scale[:, None, None], bias[:, None, None])
        )
    record(
        case,
        {
            "op": "conv2d_dynamic",
            "about": about,
            "stride": list(stride),
            "padding": list(padding),
            "dilation": list(dilation),
            "groups": groups,
        },
        x=x,
        weight=weight,
        bias=bias,
        weight_codes=weight_codes,
        weight_scale=weight_scale,
        x_codes=np.stack(codes),
        x_scale=f32(scales),
        x_zero_point=np.asarray(zero_points, np.uint8),
        acc=narrowed(sums),
        output=np.stack(outputs),
    )


def narrowed(sums):
    sums = np.stack(sums)
    assert np.abs(sums).max() < 2**31
    return sums.astype(np.int32)


def dequantized_sums(sums, scale, weight_scale, bias=None):
    """float(sum) * (scale * weight scale) + bias: every operation rounds to f32, none is fused."""
    product = np.float32(scale) * weight_scale
    output = sums.astype(np.float32) * product
    if bias is not None:
        output = output + bias
    assert output.dtype == np.float32
    return output


def dynamic_linear(number, x, weight, bias, about):
    """x [..., in], weight [out, in], bias [out] or None."""
    case = f"linear_dyn_{number}"
    weight_codes, weight_scale = symmetric_weight(weight)
    codes, scales, zero_points, sums, outputs = [], [], [], [], []
    for row in x.reshape(-1, x.shape[-1]):
        code, scale, zero_point = agreed_quantize(row[None])
        exact = (code.astype(np.int64) - int(zero_point)) @ weight_codes.T.astype(np.int64)
        node = helper.make_node("MatMulInteger", ["x", "w", "z"], ["acc"])
        transposed = np.ascontiguousarray(weight_codes.T)
        check_sums(
            case,
            exact,
            *(
                result[0]
                for result in run_both(
                    [node],
                    {"x": code, "w": transposed, "z": zero_point},
                    {"acc": TensorProto.INT32},
                )
            ),
        )
        codes.append(code[0])
        scales.append(scale)
        zero_points.append(zero_point)
        sums.append(exact[0])
        outputs.append(dequantized_sums(exact[0], scale, weight_scale, bias))
    rows = x.shape[:-1]
    values = {} if bias is None else {"bias": bias}
    record(
        case,
        {"op": "linear_dynamic", "about": about},
        x=x,
        weight=weight,
        weight_codes=weight_codes,
        weight_scale=weight_scale,
        x_codes=np.stack(codes).reshape(x.shape),
        x_scale=f32(scales).reshape(rows),
        x_zero_point=np.asarray(zero_points, np.uint8).reshape(rows),
        acc=narrowed(sums).reshape(*rows, -1),
        output=np.stack(outputs).reshape(*rows, -1),
        **values,
    )


def integer_layers():
    same = (1, 1, 1, 1)
    dynamic_conv(0, [2, 4, 6, 6], 8, (3, 3), padding=same, about="3x3")
    dynamic_conv(1, [2, 3, 8, 7], 5, (3, 3), padding=same, stride=(2, 2), about="stride 2")
    dynamic_conv(2, [2, 6, 5, 5], 8, (3, 3), padding=same, groups=2, about="groups 2")
    dynamic_conv(3, [2, 6, 6, 5], 6, (3, 3), padding=same, groups=6, about="depthwise")
    two = (2, 2)
    dynamic_conv(4, [2, 3, 7, 7], 4, (3, 3), padding=two * 2, dilation=two, about="dilation 2")
    tall = {"padding": (2, 1, 2, 1), "stride": (2, 1)}
    dynamic_conv(5, [2, 3, 9, 6], 4, (5, 3), **tall, about="5x3")
    # All positive, so that the zero point is 0, and all negative, so that it is 255.
    positive = {"padding": same, "offset": 6.0}
    negative = {"padding": (0, 1, 2, 0), "offset": -6.0}
    dynamic_conv(6, [2, 16, 4, 4], 16, (3, 3), **positive, about="positive input")
    dynamic_conv(7, [2, 3, 4, 5], 4, (3, 3), **negative, about="negative input")
    dynamic_conv(8, [2, 8, 4, 4], 6, (1, 1), about="1x1")

    def scaled(case, *shape):
        """Rows of unlike magnitude."""
        return random(f"{case}.x", *shape) * np.exp(2 * random(f"{case}.rows", *shape[:-1], 1))

    dynamic_linear(
        0,
        scaled("linear_dyn_0", 5, 20),
        random("w0", 7, 20),
        random("b0", 7),
        "rows of unlike range",
    )
    dynamic_linear(
        1, scaled("linear_dyn_1", 2, 3, 33), random("w1", 6, 33), random("b1", 6), "3-D input"
    )
    dynamic_linear(2, scaled("linear_dyn_2", 4, 64), random("w2", 16, 64), None, "no bias")
    # Sums of pairs of products beyond 16 bits.
    dynamic_linear(
        3,
        np.concatenate([np.full((1, 300), 3, np.float32), np.full((1, 300), -3, np.float32)]),
        np.repeat(f32([[1], [-1], [0.5]]), 300, axis=1),
        f32([1, 2, 3]),
        "largest codes",
    )


def main():
    dynamic_quantize_linear()
    quantize_linear()
    asymmetric()
    constants()
    symmetric_weights()
    integer_layers()
    print(f"{len(metadata)} cases, left out: {excluded if excluded else 'none'}")
    refio.save(refio.FIXTURES / "quant.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
