"""Train three networks on the digits, beside the one of `train_digits.py`, and write them as ONNX.

Run from the repository root: python tests/reference/train_static_networks.py [NAME]...

Writes, from examples/data/digits.safetensors and by the recipe of `train_digits.py`,
  tests/fixtures/digits_residual.onnx   four residual blocks, two of them with a projection on the shortcut
                                        (average pooling, then a 1x1 convolution)
  tests/fixtures/digits_separable.onnx  depthwise-separable: inverted residuals with a linear bottleneck, ReLU6
  tests/fixtures/digits_squeeze.onnx    inverted residuals with HardSwish and squeeze-and-excitation
with the nodes that PyTorch's exporter writes, BatchNormalization left standing, named after the modules. The
weights are those after the last epoch; the test images are evaluated once, to report the accuracy. ONNX Runtime's
logits are compared with PyTorch's.
"""

import sys
import time
from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
import torch
from digits_onnx import OPSET
from onnx import TensorProto, helper, numpy_helper
from refio import DATA, FIXTURES, ROOT
from torch import nn
from train_digits import evaluate, to_input, train


class Residual(nn.Module):
    """act(main(x) + shortcut(x)); an empty `shortcut` is the identity, and so is an empty `act`."""

    def __init__(self, main, shortcut=(), act=()):
        super().__init__()
        self.main = main
        self.shortcut = nn.Sequential(*shortcut)
        self.act = nn.Sequential(*act)

    def forward(self, x):
        return self.act(self.main(x) + self.shortcut(x))


class Squeeze(nn.Module):
    """Squeeze-and-excitation: every channel times a factor 0..1 computed from the means of all channels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x):
        return x * self.factors(x)


def sequence(**steps):
    return nn.Sequential(OrderedDict(steps))


def conv(inputs, outputs, kernel, stride=1, groups=1, act=None):
    """Convolution, batch normalization and an activation, if any."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return sequence(conv=layer, bn=nn.BatchNorm2d(outputs), **({"act": act()} if act else {}))


def basic(inputs, outputs, stride=1):
    main = sequence(a=conv(inputs, outputs, 3, stride, act=nn.ReLU), b=conv(outputs, outputs, 3))
    same = stride == 1 and inputs == outputs
    return Residual(main, [] if same else [nn.AvgPool2d(stride), conv(inputs, outputs, 1)], [nn.ReLU()])


def inverted(inputs, outputs, act, stride=1, expand=4, squeeze=False):
    hidden = inputs * expand
    steps = {"expand": conv(inputs, hidden, 1, act=act)} if expand > 1 else {}
    steps["depthwise"] = conv(hidden, hidden, 3, stride, groups=hidden, act=act)
    if squeeze:
        steps["squeeze"] = Squeeze(hidden, hidden // 4)
    main = sequence(**steps, project=conv(hidden, outputs, 1))
    return Residual(main) if stride == 1 and inputs == outputs else main


def residual():
    return sequence(
        stem=conv(1, 16, 3, act=nn.ReLU),
        block1=basic(16, 16),
        block2=basic(16, 24, stride=2),
        block3=basic(24, 24),
        block4=basic(24, 40, stride=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(40, 10),
    )


def separable():
    return sequence(
        stem=conv(1, 16, 3, act=nn.ReLU6),
        block1=inverted(16, 16, nn.ReLU6, expand=1),
        block2=inverted(16, 24, nn.ReLU6, stride=2),
        block3=inverted(24, 24, nn.ReLU6),
        block4=inverted(24, 40, nn.ReLU6, stride=2),
        block5=inverted(40, 40, nn.ReLU6),
        head=conv(40, 96, 1, act=nn.ReLU6),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(96, 10),
    )


def squeeze():
    return sequence(
        stem=conv(1, 16, 3, act=nn.Hardswish),
        block1=inverted(16, 24, nn.Hardswish, stride=2, expand=2, squeeze=True),
        block2=inverted(24, 24, nn.Hardswish, expand=2, squeeze=True),
        block3=inverted(24, 32, nn.Hardswish, stride=2, expand=2, squeeze=True),
        head=conv(32, 64, 1, act=nn.Hardswish),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(64, 10),
    )


NETWORKS = {"residual": residual, "separable": separable, "squeeze": squeeze}


def path(name):
    return FIXTURES / f"digits_{name}.onnx"


def load(name):
    """The trained network in evaluation mode, from the weights in its ONNX file."""
    model = NETWORKS[name]()
    tensors = onnx.load(path(name)).graph.initializer
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in tensors}
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing), (missing, unexpected)
    return model.eval()


class Writer:
    """The nodes of a module and all in it, in the order of execution; each is called like its output."""

    def __init__(self):
        self.nodes = []

    def node(self, operator, name, inputs, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name, value):
        return self.node("Constant", name, [], value=numpy_helper.from_array(np.array(value, np.float32)))

    def write(self, module, name, x):
        """Add the nodes of `module`, applied to the value `x`; the name of its output."""
        match module:
            case nn.Sequential():
                for part, child in module.named_children():
                    x = self.write(child, f"{name}.{part}".lstrip("."), x)
                return x
            case Residual():
                main = self.write(module.main, f"{name}.main", x)
                shortcut = self.write(module.shortcut, f"{name}.shortcut", x)
                return self.write(module.act, f"{name}.act", self.node("Add", f"{name}.add", [main, shortcut]))
            case Squeeze():
                return self.node("Mul", f"{name}.mul", [x, self.write(module.factors, f"{name}.factors", x)])
            case nn.Conv2d():
                inputs = [x, f"{name}.weight", *([f"{name}.bias"] if module.bias is not None else [])]
                sizes = {"dilations": [1, 1], "group": module.groups, "kernel_shape": module.kernel_size}
                return self.node("Conv", name, inputs, **sizes, pads=module.padding * 2, strides=module.stride)
            case nn.BatchNorm2d():
                parts = [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
                return self.node("BatchNormalization", name, [x, *parts], epsilon=module.eps)
            case nn.ReLU6():
                return self.node("Clip", name, [x, self.constant(f"{name}.min", 0), self.constant(f"{name}.max", 6)])
            case nn.ReLU():
                return self.node("Relu", name, [x])
            case nn.Hardswish():
                return self.node("HardSwish", name, [x])
            case nn.Hardsigmoid():
                return self.node("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)
            case nn.AvgPool2d():
                size = [module.kernel_size] * 2
                return self.node("AveragePool", name, [x], kernel_shape=size, strides=size)
            case nn.AdaptiveAvgPool2d():
                return self.node("GlobalAveragePool", name, [x])
            case nn.Flatten():
                return self.node("Flatten", name, [x], axis=1)
            case nn.Linear():
                return self.node("Gemm", name, [x, f"{name}.weight", f"{name}.bias"], transB=1)
        raise TypeError(type(module))


def to_onnx(name, model):
    writer = Writer()
    assert writer.write(model, "", "image") == "fc"
    writer.nodes[-1].output[0] = "logits"
    weights = model.state_dict().items()
    weights = {key: value.numpy() for key, value in weights if not key.endswith("num_batches_tracked")}
    graph = helper.make_graph(
        writer.nodes,
        f"digits_{name}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, key) for key, value in sorted(weights.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = safetensors.numpy.load_file(DATA / "digits.safetensors")
    parts = {
        part: (to_input(digits[f"{part}.images"]), torch.from_numpy(digits[f"{part}.labels"].astype(np.int64)))
        for part in ("train", "validate", "test")
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name in sys.argv[1:] or NETWORKS:
        start = time.time()
        model = train(NETWORKS[name], *parts["train"], check=parts["validate"])
        _, validated, _ = evaluate(model, *parts["validate"])
        # Reported only.
        expected, tested, _ = evaluate(model, *parts["test"])
        raw = to_onnx(name, model)
        session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"image": parts["test"][0].numpy()})
        expected = expected.numpy()
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        assert error < 1e-5, error
        path(name).write_bytes(raw)
        count = sum(p.numel() for p in model.parameters())
        print(f"{path(name).relative_to(ROOT)}: {len(raw)} bytes, {count} parameters, {time.time() - start:.0f} s;")
        print(f"  validation {validated}/250, test {tested}/647, {error:.1e} from PyTorch in ONNX Runtime")


if __name__ == "__main__":
    main()
