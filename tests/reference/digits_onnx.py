"""Write the digits network of `train_digits.py` as ONNX, from the weights that it saved.

Run from the repository root: python tests/reference/digits_onnx.py

Writes tests/fixtures/digits_cnn.onnx: the nodes that PyTorch's exporter writes for it, under the names
that the example gives its layers, with BatchNormalization left standing. The bytes depend on nothing but
the weights; ONNX Runtime's logits are compared with PyTorch's.
"""

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from refio import DATA, FIXTURES, ROOT, save

OPSET = 17


def graph(weights):
    nodes = []

    def node(operator, name, inputs, **attributes):
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def block(i, x, stride=1, relu=True):
        x = node("Conv", f"conv{i}", [x, f"conv{i}.weight"], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)
        names = [f"bn{i}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        x = node("BatchNormalization", f"bn{i}", [x, *names], epsilon=1e-5)
        return node("Relu", f"relu{i}", [x]) if relu else x

    x = block(2, block(1, "image"))
    shortcut = node("MaxPool", "pool1", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = block(4, block(3, shortcut), relu=False)
    x = node("Relu", "relu4", [node("Add", "add", [x, shortcut])])
    x = node("GlobalAveragePool", "gap", [block(5, x, stride=2)])
    x = node("Flatten", "flatten", [x], axis=1)
    nodes.append(helper.make_node("Gemm", [x, "fc.weight", "fc.bias"], ["logits"], "fc", transB=1))
    return helper.make_graph(
        nodes,
        "digits_cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in sorted(weights.items())],
    )


def main():
    weights = safetensors.numpy.load_file(DATA / "digits_cnn.safetensors")
    weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    model = helper.make_model(graph(weights), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    raw = model.SerializeToString(deterministic=True)

    images = safetensors.numpy.load_file(DATA / "digits.safetensors")["test.images"].astype(np.float32) / np.float32(16)
    expected = safetensors.numpy.load_file(FIXTURES / "digits_cnn.safetensors")["logits_all"]
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < 1e-5, error
    path = FIXTURES / "digits_cnn.onnx"
    path.write_bytes(raw)
    save(FIXTURES / "digit_images.safetensors", {"image": images[:8]}, {"values": "the first 8 test images / 16"})
    print(f"{path.relative_to(ROOT)}: {len(raw)} bytes, {error:.1e} from PyTorch in ONNX Runtime")


if __name__ == "__main__":
    main()
