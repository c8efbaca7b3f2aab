"""PyTorch's gradients for every operation that trains.

Run from the repository root: python tests/reference/gradient_fixtures.py

Writes tests/fixtures/gradients.safetensors. Of each case: its inputs and parameters by name, `g` (the gradient by the output), the
output `y`, and `d.<name>`, the gradient of the sum of `g * y` by that input or parameter. All in float64, stored as float32.
"""

import torch
import torch.nn.functional as F

import refio

torch.manual_seed(8)
CASES = {}


def case(name, function, whole=(), **operands):
    """Records the gradients of `function(**operands)` by all operands but the `whole` ones (integers, statistics)."""
    given = {key: value.double() if value.is_floating_point() else value for key, value in operands.items()}
    # Such values as float32 holds, so that both sides start from the same.
    given = {key: value.float().double() if value.is_floating_point() else value for key, value in given.items()}
    learned = [key for key in given if key not in whole]
    for key in learned:
        given[key] = given[key].detach().clone().requires_grad_()
    y = function(**given)
    g = torch.ones_like(y) if y.dim() == 0 else torch.randn_like(y).float().double()
    (g * y).sum().backward()
    CASES[name] = {**{key: value.detach() for key, value in given.items()}, "g": g, "y": y.detach()}
    CASES[name].update({f"d.{key}": given[key].grad for key in learned})


def normal(*shape):
    return torch.randn(*shape)


def conv(name, inputs, outputs, kernel, bias, size=(5, 6), **options):
    groups = options.get("groups", 1)
    operands = {"x": normal(2, inputs, *size), "weight": normal(outputs, inputs // groups, *kernel) * 0.5}
    if bias:
        operands["bias"] = normal(outputs)
    case(name, lambda x, weight, bias=None: F.conv2d(x, weight, bias, **options), **operands)


conv("conv", 3, 5, (3, 3), True, padding=1)
conv("conv_strided", 3, 4, (3, 2), True, size=(6, 7), stride=(2, 3), padding=(1, 0))
conv("conv_dilated", 2, 3, (2, 3), False, size=(7, 7), dilation=(2, 1), padding=(1, 2))
conv("conv_padded", 2, 3, (2, 2), False, size=(3, 3), padding=2)
conv("conv_grouped", 4, 6, (3, 3), True, groups=2, padding=1)
conv("conv_depthwise", 4, 4, (3, 3), True, groups=4, padding=1, stride=2)
conv("conv_multiplied", 3, 6, (3, 3), False, groups=3)
case("linear", F.linear, input=normal(2, 3, 5), weight=normal(4, 5), bias=normal(4))
statistics = {"mean": normal(3) * 0.2, "variance": torch.rand(3) + 0.5}
for name, training in (("batch_norm_batch", True), ("batch_norm_running", False)):
    case(
        name,
        lambda x, weight, bias, mean, variance: F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training, 0.1, 1e-5),
        whole=("mean", "variance"),
        x=normal(4, 3, 3, 2) * 1.5 + 0.3,
        weight=torch.rand(3) + 0.5,
        bias=normal(3),
        **statistics,
    )
case("layer_norm", lambda x, scale, bias: F.layer_norm(x, (6,), scale, bias, 1e-5), x=normal(2, 3, 6), scale=normal(6), bias=normal(6))
case("rms_norm", lambda x, scale: F.rms_norm(x, (6,), scale, 1e-5), x=normal(2, 3, 6), scale=normal(6))
ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "exp": torch.exp,
    "erf": torch.erf,
    "abs": torch.abs,
    "neg": torch.neg,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "thresholded_relu": lambda x: torch.where(x > 0.8, x, 0.0),
    "clip": lambda x: torch.clamp(x, -0.5, 2.0),
}
for name, function in ACTIVATIONS.items():
    case(name, lambda x, function=function: function(x), x=normal(40) * 3)
for name, function in {"log": torch.log, "sqrt": torch.sqrt, "reciprocal": torch.reciprocal}.items():
    case(name, lambda x, function=function: function(x), x=torch.rand(20) * 3 + 0.2)
for name, function in {"tan": torch.tan, "asin": torch.asin, "acos": torch.acos, "atanh": torch.atanh}.items():
    case(name, lambda x, function=function: function(x), x=torch.linspace(-0.9, 0.9, 20))
case("acosh", torch.acosh, input=torch.linspace(1.1, 6.0, 20))
case("prelu", lambda x, slope: torch.where(x < 0, x * slope, x), x=normal(2, 3, 4), slope=normal(3, 1))
case("max_pool", lambda x: F.max_pool2d(x, 2), x=normal(2, 3, 4, 6))
case("max_pool_padded", lambda x: F.max_pool2d(x, 3, 2, 1), x=normal(2, 2, 5, 6))
case("avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), x=normal(2, 2, 5, 6))
case("avg_pool_inside", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), x=normal(2, 2, 5, 6))
case("max_pool_dilated", lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), dilation=2), x=normal(2, 3, 7, 8))
case("max_pool_ceil", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), x=normal(2, 2, 6, 8))
case("avg_pool_ceil", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), x=normal(2, 2, 6, 8))
case("global_max_pool", lambda x: F.adaptive_max_pool2d(x, 1), x=normal(2, 3, 4, 5))
case("global_avg_pool", lambda x: F.adaptive_avg_pool2d(x, 1), x=normal(2, 3, 4, 5))
case("add", torch.add, input=normal(2, 3, 4), other=normal(2, 3, 4))
case("add_spread", torch.add, input=normal(2, 3, 4), other=normal(3, 1))
case("sub", torch.sub, input=normal(2, 1, 4), other=normal(3, 4))
case("mul", torch.mul, input=normal(2, 3, 4), other=normal(2, 3, 4))
case("mul_gate", torch.mul, input=normal(2, 3, 4, 5), other=normal(2, 3, 1, 1))
case("div", torch.div, input=normal(2, 3), other=torch.rand(2, 1) + 0.5)
case("concat", lambda a, b: torch.cat([a, b], 1), a=normal(2, 3, 4, 5), b=normal(2, 2, 4, 5))
case("flatten", lambda x: torch.flatten(x, 1), x=normal(2, 3, 2, 2))
case("reshape", lambda x: x.reshape(2, 6, 2), x=normal(2, 3, 4))
case("transpose", lambda x: x.permute(0, 2, 3, 1), x=normal(2, 3, 2, 4))
case("softmax", lambda x: torch.softmax(x, -1), x=normal(3, 7) * 2)
case("softmax_inner", lambda x: torch.softmax(x, 1), x=normal(2, 5, 3) * 2)
case("log_softmax", lambda x: torch.log_softmax(x, -1), x=normal(3, 7) * 2)
case("matmul", torch.matmul, input=normal(2, 3, 4, 5), other=normal(2, 3, 5, 3))
case("matmul_spread", torch.matmul, input=normal(2, 3, 4), other=normal(4, 5))
case("matmul_row", torch.matmul, input=normal(4), other=normal(3, 4, 5))
case("matmul_column", torch.matmul, input=normal(3, 2, 4), other=normal(4))
case("gemm", lambda a, b, c: 0.5 * a @ b + 2.0 * c, a=normal(3, 4), b=normal(4, 5), c=normal(5))
case("gemm_turned", lambda a, b, c: 0.5 * a.T @ b.T + 2.0 * c, a=normal(4, 3), b=normal(5, 4), c=normal(3, 1))
case("pow", torch.pow, input=torch.rand(3, 4) * 2 + 0.3, exponent=normal(4))
case("square", lambda x: x**2.0, x=normal(3, 4))
three = lambda: {"a": normal(2, 3, 4), "b": normal(3, 1), "c": normal(2, 1, 4)}
case("sum_of", lambda a, b, c: a + b + c, **three())
case("mean_of", lambda a, b, c: (a + b + c) / 3, **three())
case("max_of", lambda a, b, c: torch.maximum(torch.maximum(a, b), c), **three())
case("min_of", lambda a, b, c: torch.minimum(torch.minimum(a, b), c), **three())
case("max_of_equals", torch.maximum, input=torch.tensor([1.0, 2.0, 3.0]), other=torch.tensor([1.0, 3.0, 2.0]))
for name, shape in (("batch_norm_rows", (5, 3)), ("batch_norm_lines", (4, 3, 6)), ("batch_norm_images", (4, 3, 2, 3))):
    case(
        name,
        lambda x, weight, bias, mean, variance: F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, True, 0.1, 1e-5),
        whole=("mean", "variance"),
        x=normal(*shape),
        weight=torch.rand(3) + 0.5,
        bias=normal(3),
        **statistics,
    )
case(
    "where",
    lambda condition, a, b: torch.where(condition, a, b),
    whole=("condition",),
    condition=normal(3, 4) > 0,
    a=normal(2, 1, 4),
    b=normal(3, 1),
)
case("slice", lambda x: x[:, 1:5:2, -3:], x=normal(2, 6, 5))
case("split", lambda x: 2 * x.split([2, 3], 1)[0].sum(1) - x.split([2, 3], 1)[1].sum(1), x=normal(3, 5, 2))
case("gather", lambda x: x[:, [1, 3, 1]], x=normal(2, 4, 3))
indices = torch.tensor([[0, 1], [2, 2], [1, 0]])
case("gather_elements", lambda x, indices: x.gather(1, indices), whole=("indices",), x=normal(3, 4), indices=indices)
case("expand", lambda x: x.expand(2, 3, 4), x=normal(3, 1))
case("tile", lambda x: x.repeat(2, 3), x=normal(2, 3))
case("pad", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), x=normal(2, 3))
case("pad_reflected", lambda x: F.pad(x, (2, 1), mode="reflect"), x=normal(2, 4))
case("trilu", lambda x: x.tril(), x=normal(2, 4, 4))
case("depth_to_space", lambda x: F.pixel_shuffle(x, 2), x=normal(1, 8, 2, 3))
case("pad_edge", lambda x: F.pad(x[None], (2, 1), mode="replicate")[0], x=normal(2, 4))
case("triu", lambda x: x.triu(), x=normal(2, 3, 4))
case("gather_nd", lambda x: torch.stack([x[0, 1], x[2, 0]]), x=normal(3, 2, 2))
case("space_to_depth", lambda x: F.pixel_unshuffle(x, 2), x=normal(1, 2, 4, 6))
case("pad_wrapped", lambda x: F.pad(x[None], (2, 1), mode="circular")[0], x=normal(2, 4))
case(
    "reverse_sequence",
    lambda x: torch.stack([torch.cat([x[:2, 0].flip(0), x[2:, 0]]), x[:, 1].flip(0)], 1),
    x=normal(4, 2, 3),
)
case("dropout", lambda x: x * 1.0, x=normal(2, 3))
case("swish", lambda x: x * torch.sigmoid(1.7 * x), x=normal(20) * 3)
case("hard_sigmoid_steep", lambda x: torch.clamp(0.4 * x + 0.3, 0, 1), x=normal(20) * 3)
case("avg_pool_padded", lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1), x=normal(2, 2, 5, 4))
case("global_max_of_lines", lambda x: x.amax(2, keepdim=True), x=normal(2, 3, 7))
case("global_avg_of_blocks", lambda x: x.mean((2, 3, 4), keepdim=True), x=normal(2, 3, 2, 3, 2))
case("squeeze", lambda x: x.squeeze(1), x=normal(3, 1, 2))
case("unsqueeze", lambda x: x.unsqueeze(1), x=normal(3, 2))


def block(x, scale, shift, qkv, out, up, up_bias, down, mask):
    """An attention block before whose layers values are normalized: two heads of four, values read by several."""
    n, rows, width = x.shape
    normed = F.layer_norm(x, (width,), scale, shift, 1e-5)
    q, k, v = (part.reshape(n, rows, 2, 4).transpose(1, 2) for part in F.linear(normed, qkv).split(width, -1))
    attention = torch.softmax(q @ k.transpose(2, 3) * 0.5 + mask, -1)
    x = x + F.linear((attention @ v).transpose(1, 2).reshape(n, rows, width), out)
    return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (width,), scale, shift, 1e-5), up, up_bias)), down)


case(
    "block",
    block,
    whole=("mask",),
    x=normal(2, 5, 8),
    scale=torch.rand(8) + 0.5,
    shift=normal(8) * 0.1,
    qkv=normal(24, 8) * 0.4,
    out=normal(8, 8) * 0.4,
    up=normal(12, 8) * 0.4,
    up_bias=normal(12) * 0.1,
    down=normal(8, 12) * 0.4,
    mask=torch.full((5, 5), -1e4).triu(1),
)
case("reduce_mean", lambda x: x.mean((1, 2), keepdim=True), x=normal(2, 3, 4))
case("reduce_sum", lambda x: x.sum(-1), x=normal(2, 3, 4))
case("embedding", lambda weight, indices: F.embedding(indices, weight), whole=("indices",), weight=normal(5, 3), indices=torch.tensor([[1, 4, 1], [0, 2, 2]]))
labels = torch.tensor([0, 3, 2, 3, 1])
case("cross_entropy", lambda x, labels: F.cross_entropy(x, labels), whole=("labels",), x=normal(5, 4) * 2, labels=labels)
case("cross_entropy_smooth", lambda x, labels: F.cross_entropy(x, labels, label_smoothing=0.1), whole=("labels",), x=normal(5, 4) * 2, labels=labels)
case("mean_squared_error", lambda x, target: F.mse_loss(x, target), whole=("target",), x=normal(3, 4), target=normal(3, 4))
case(
    "distillation",
    lambda x, teacher: 9 * F.kl_div(F.log_softmax(x / 3, 1), F.softmax(teacher / 3, 1), reduction="batchmean"),
    whole=("teacher",),
    x=normal(5, 4) * 2,
    teacher=normal(5, 4) * 2,
)

# PyTorch multiplies by the inverse of the scale: of powers of two that is the quotient. 4 bits; half the values beyond the ends, and values that round to the ends from either side.
for name, scale, zero_point in (
    ("fake_tensor", torch.tensor(0.25), torch.tensor(5)),
    ("fake_channel", torch.tensor([0.125, 0.25, 0.5, 1.0]), torch.tensor([0, 7, 15, 4])),
):
    scale = scale.float()
    x = torch.cat([normal(4, 12) * 4, torch.arange(-8, 12).repeat(4, 1) * 0.125 + 2.5], 1).float().requires_grad_()
    if scale.dim() == 0:
        y = torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), 0, 15)
    else:
        y = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), 0, 0, 15)
    g = torch.randn_like(y)
    (g * y).sum().backward()
    CASES[name] = {"x": x.detach(), "g": g, "y": y.detach(), "d.x": x.grad}
    CASES[name].update(scale=scale.reshape(-1), zero_point=zero_point.float().reshape(-1))

tensors = {}
for name, values in CASES.items():
    for key, value in values.items():
        tensors[f"{name}/{key}"] = (value.float() if value.is_floating_point() else value).numpy()
refio.save(refio.FIXTURES / "gradients.safetensors", tensors, {"torch": torch.__version__})
