"""PyTorch's float32 outputs of every float layer, for small seeded random inputs.

Run from the repository root: python tests/reference/layer_fixtures.py

Writes tests/fixtures/layers.safetensors: tensors `<case>.input`, `.weight`, ..., `.output`, and
under `<case>` in the metadata the layer's kind ("op") and hyper-parameters as JSON text.
Padding is always [top, left, bottom, right]; kernel, stride and dilation are [height, width].
"""

import zlib

import numpy as np
import torch
import torch.nn.functional as F

import refio

tensors = {}
metadata = {}
worst = {}


def random(case, name, *shape, scale=1.0, offset=0.0):
    """Normal values that depend on the case and the tensor's name only."""
    rng = np.random.RandomState(zlib.crc32(f"{case}.{name}".encode()))
    return torch.from_numpy((rng.standard_normal(shape) * scale + offset).astype(np.float32))


def record(case, parameters, function, **inputs):
    """Store the case; `function` maps the inputs (None where absent) to the output."""
    assert case not in metadata
    inputs = {name: value for name, value in inputs.items() if value is not None}
    output = function(**inputs)
    exact = function(**{name: value.double() for name, value in inputs.items()})
    difference = ((output - exact).abs() / exact.abs().clamp(min=1.0)).max().item()
    op = parameters["op"]
    worst[op] = max(worst.get(op, 0.0), difference)
    for name, value in {**inputs, "output": output}.items():
        tensors[f"{case}.{name}"] = value.numpy()
    metadata[case] = parameters


def pair(value):
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def conv2d(case, x, out_channels, kernel, *, stride=1, padding=0, dilation=1, groups=1, bias=True):
    """`padding` is one number, (height, width) or (top, left, bottom, right)."""
    stride, dilation, kernel = pair(stride), pair(dilation), pair(kernel)
    padding = pair(padding)
    padding = padding if len(padding) == 4 else padding * 2
    top, left, bottom, right = padding
    in_channels = x[1] // groups

    def function(input, weight, bias=None):
        # F.pad takes the last axis first.
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, tuple(stride), 0, tuple(dilation), groups)

    scale = (in_channels * kernel[0] * kernel[1]) ** -0.5
    record(
        case,
        {
            "op": "conv2d",
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        },
        function,
        input=random(case, "input", *x),
        weight=random(case, "weight", out_channels, in_channels, *kernel, scale=scale),
        bias=random(case, "bias", out_channels) if bias else None,
    )


def linear(case, x, out_features, bias=True):
    record(
        case,
        {"op": "linear"},
        F.linear,
        input=random(case, "input", *x),
        weight=random(case, "weight", out_features, x[-1], scale=x[-1] ** -0.5),
        bias=random(case, "bias", out_features) if bias else None,
    )


def batch_norm2d(case, x, eps):
    channels = x[1]

    def function(input, weight, bias, running_mean, running_var):
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.1, eps)

    record(
        case,
        {"op": "batch_norm2d", "eps": eps},
        function,
        input=random(case, "input", *x),
        weight=random(case, "weight", channels, scale=0.3, offset=1.0),
        bias=random(case, "bias", channels),
        running_mean=random(case, "running_mean", channels),
        # From about 1e-3, where eps matters, to above 1.
        running_var=torch.exp(random(case, "running_var", channels, scale=2.0, offset=-2.0)),
    )


def elementwise(case, op, function, x, scale=3.0):
    record(case, {"op": op}, function, input=random(case, "input", *x, scale=scale))


def flatten(input):
    return torch.flatten(input, 1)


def global_avg_pool(input):
    return F.adaptive_avg_pool2d(input, 1)


def max_pool2d(case, x, kernel, *, stride=None, padding=0, dilation=1, ceil_mode=False):
    kernel, padding, dilation = pair(kernel), pair(padding), pair(dilation)
    stride = pair(stride) if stride is not None else kernel
    record(
        case,
        {
            "op": "max_pool2d",
            "kernel": kernel,
            "stride": stride,
            "padding": padding * 2,
            "dilation": dilation,
            "ceil_mode": ceil_mode,
        },
        lambda input: F.max_pool2d(input, kernel, stride, padding, dilation, ceil_mode),
        # Mostly negative, so that padding with zero instead of minus infinity would show.
        input=random(case, "input", *x, offset=-2.0),
    )


def avg_pool2d(
    case, x, kernel, *, stride=None, padding=0, ceil_mode=False, count_include_pad=True
):
    kernel, padding = pair(kernel), pair(padding)
    stride = pair(stride) if stride is not None else kernel
    record(
        case,
        {
            "op": "avg_pool2d",
            "kernel": kernel,
            "stride": stride,
            "padding": padding * 2,
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        },
        lambda input: F.avg_pool2d(input, kernel, stride, padding, ceil_mode, count_include_pad),
        input=random(case, "input", *x, offset=1.0),
    )


def softmax(case, x, axis, scale):
    record(
        case,
        {"op": "softmax", "axis": axis},
        lambda input: F.softmax(input, dim=axis),
        input=random(case, "input", *x, scale=scale).clamp(-80.0, 80.0),
    )


def main():
    torch.set_num_threads(1)

    conv2d("conv2d_0", [1, 4, 7, 7], 5, 3)
    conv2d("conv2d_1", [1, 4, 9, 8], 6, 3, stride=2, padding=1)
    conv2d("conv2d_2", [1, 3, 9, 9], 4, 3, padding=2, dilation=2)
    conv2d("conv2d_3", [1, 6, 6, 6], 8, 3, padding=1, groups=2)
    conv2d("conv2d_4", [1, 6, 6, 6], 6, 3, padding=1, groups=6)
    conv2d("conv2d_5", [1, 5, 6, 6], 10, 3, padding=1, stride=2, groups=5)
    conv2d("conv2d_6", [1, 16, 5, 5], 16, 1)
    conv2d("conv2d_7", [1, 3, 10, 7], 5, (5, 3), stride=(2, 1), padding=(2, 1))
    conv2d("conv2d_8", [1, 3, 6, 7], 4, 3, padding=(0, 1, 2, 3))
    conv2d("conv2d_9", [1, 4, 6, 6], 5, 3, padding=1, bias=False)
    conv2d("conv2d_10", [1, 3, 8, 8], 7, 3, padding=1)
    conv2d("conv2d_11", [3, 4, 5, 6], 6, 3, padding=1)
    conv2d("conv2d_12", [1, 16, 4, 4], 32, 3, padding=1)
    both = {"stride": (1, 2), "padding": (1, 2), "dilation": (1, 2)}
    conv2d("conv2d_13", [2, 4, 8, 11], 4, 3, **both, groups=2)
    conv2d("conv2d_14", [1, 8, 7, 7], 8, 1, stride=2)
    conv2d("conv2d_15", [1, 2, 2, 2], 3, 3, padding=3)

    linear("linear_0", [5, 20], 7)
    linear("linear_1", [2, 3, 17], 9)
    linear("linear_2", [4, 32], 16, bias=False)
    linear("linear_3", [1, 64], 10)

    batch_norm2d("batch_norm2d_0", [2, 5, 4, 3], 1e-5)
    batch_norm2d("batch_norm2d_1", [1, 16, 3, 3], 1e-3)

    elementwise("relu_0", "relu", F.relu, [2, 3, 4, 5])
    elementwise("relu6_0", "relu6", F.relu6, [2, 3, 4, 5], scale=6.0)
    elementwise("flatten_0", "flatten", flatten, [2, 3, 4, 5])
    elementwise("flatten_1", "flatten", flatten, [3, 8, 1, 1])

    max_pool2d("max_pool2d_0", [1, 3, 8, 8], 2)
    max_pool2d("max_pool2d_1", [2, 3, 9, 8], 3, stride=2, padding=1)
    max_pool2d("max_pool2d_2", [1, 2, 7, 8], 2, ceil_mode=True)
    max_pool2d("max_pool2d_3", [1, 2, 9, 10], 3, stride=1, dilation=2)
    max_pool2d("max_pool2d_4", [1, 2, 9, 7], (3, 2), stride=(2, 1), padding=(1, 0))
    # The last window would start beyond the input and its left padding: it is left out.
    max_pool2d("max_pool2d_5", [1, 2, 5, 6], 3, stride=3, padding=1, ceil_mode=True)
    max_pool2d("max_pool2d_6", [1, 2, 5, 6], 1, stride=3, ceil_mode=True)

    avg_pool2d("avg_pool2d_0", [1, 3, 8, 8], 2)
    avg_pool2d("avg_pool2d_1", [2, 3, 9, 8], 3, stride=2, padding=1)
    avg_pool2d("avg_pool2d_2", [2, 3, 9, 8], 3, stride=2, padding=1, count_include_pad=False)
    avg_pool2d("avg_pool2d_3", [1, 2, 7, 8], 2, ceil_mode=True)
    # Ceil mode with padding: the padding inside the window counts, what lies beyond it does not.
    avg_pool2d("avg_pool2d_4", [1, 2, 8, 6], 3, stride=2, padding=1, ceil_mode=True)
    avg_pool2d(
        "avg_pool2d_5",
        [1, 2, 8, 6],
        3,
        stride=2,
        padding=1,
        ceil_mode=True,
        count_include_pad=False,
    )
    avg_pool2d("avg_pool2d_6", [1, 2, 9, 7], (3, 2), stride=(2, 1), padding=(1, 0))

    elementwise("global_avg_pool_0", "global_avg_pool", global_avg_pool, [2, 5, 4, 3])
    elementwise("global_avg_pool_1", "global_avg_pool", global_avg_pool, [1, 16, 1, 1])

    record(
        "add_0",
        {"op": "add"},
        torch.add,
        input=random("add_0", "input", 2, 3, 4, 5),
        other=random("add_0", "other", 2, 3, 4, 5),
    )

    softmax("softmax_0", [4, 10], 1, 3.0)
    softmax("softmax_1", [2, 3, 7], 2, 3.0)
    softmax("softmax_2", [2, 5, 3, 4], 1, 3.0)
    # Mostly at the bounds of +-80.
    softmax("softmax_3", [6, 10], 1, 150.0)
    softmax("softmax_4", [2, 5, 3, 4], 1, 150.0)

    for op, difference in worst.items():
        print(f"{op}: largest difference from float64, relative above 1: {difference:.2e}")
    refio.save(refio.FIXTURES / "layers.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
