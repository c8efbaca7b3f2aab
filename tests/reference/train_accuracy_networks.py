"""Make the networks that post-training methods are measured on, with their calibration and test samples.

Run from the repository root:
  python tests/reference/train_accuracy_networks.py [--out DIR] [--again] [--sequences N] [--tool target/release/examples/quantize_onnx]
                                                    [NETWORK]...

Into DIR, by default ~/.cache/lowprec-accuracy, since the weights are too large for the repository:
  NAME.onnx                     float, opset 17, any number of samples
  NAME_calibration.safetensors  samples under the name of the input
  NAME_test.safetensors         others, and `labels`

  cnn, residual, separable      the networks in tests/fixtures; calibration: rows 0..100 of the training images
  separable_relu                `separable` with ReLU for ReLU6, trained here by the same recipe
  rescaled, rescaled_relu       `separable` and `separable_relu` with every channel on either side of a depthwise convolution
                                times 2^U(-4, 4), undone by the next layer: the same function. ReLU6 then has a cap for each channel (Min)
  transformer, lstm             predict characters of Python source code, see `sequence_networks.py`: 128 sequences of 128 from the
                                text that they learned, 128, or as many as --sequences says, from modules they did not

Weights of trained networks are kept as NAME_weights.safetensors; --again trains once more. On one core the transformer takes 16
minutes, the LSTM 5, the rest one. ONNX Runtime's logits are compared with PyTorch's; with --tool also those of the crate, run in float.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
import safetensors.torch
import sequence_networks
import torch
import train_static_networks as images
from onnx import helper, numpy_helper
from refio import DATA, FIXTURES
from torch import nn
from train_digits import evaluate, to_input, train

FOLDER = Path.home() / ".cache" / "lowprec-accuracy"
CALIBRATION = 100
RESCALE_SEED = 1
FIXED = ("cnn", "residual", "separable")
RESCALED = {"rescaled": "separable", "rescaled_relu": "separable_relu"}
NETWORKS = (*FIXED, "separable_relu", *RESCALED, *sequence_networks.NETWORKS)


class Capped(nn.Module):
    """min(relu(x), cap), a cap for each channel."""

    def __init__(self, caps):
        super().__init__()
        self.register_buffer("cap", caps.reshape(1, -1, 1, 1))

    def forward(self, x):
        return torch.minimum(torch.relu(x), self.cap)


class Writer(images.Writer):
    """Knows `Capped` too."""

    def write(self, module, name, x):
        if isinstance(module, Capped):
            return self.node("Min", name, [self.node("Relu", f"{name}.relu", [x]), f"{name}.cap"])
        return super().write(module, name, x)


def with_relu():
    """`separable` with ReLU in place of ReLU6."""
    model = images.separable()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    return model


def rescaled(model):
    """The same function: what enters and what leaves a depthwise convolution times 2^U(-4, 4), channel by channel."""
    generator = torch.Generator().manual_seed(RESCALE_SEED)
    for module in list(model.modules()):
        layers = [getattr(module, name) for name in ("expand", "depthwise", "project") if hasattr(module, name)]
        if not hasattr(module, "depthwise"):
            continue
        with torch.no_grad():
            for first, second in zip(layers, layers[1:]):
                factors = 2 ** (8 * torch.rand(len(first.bn.weight), generator=generator) - 4)
                first.bn.weight *= factors
                first.bn.bias *= factors
                # A depthwise weight has its channel first, a pointwise one second.
                shape = (-1, 1, 1, 1) if second.conv.groups > 1 else (1, -1, 1, 1)
                second.conv.weight /= factors.reshape(shape)
                if isinstance(first.act, nn.ReLU6):
                    first.act = Capped(6 * factors)
    return model


def digits():
    """{part: (images, labels)}"""
    stored = safetensors.numpy.load_file(DATA / "digits.safetensors")
    parts = ("train", "validate", "test")
    return {part: (to_input(stored[f"{part}.images"]), torch.from_numpy(stored[f"{part}.labels"].astype(np.int64))) for part in parts}


def load(name, folder=FOLDER):
    """The network in PyTorch, in evaluation mode; what is trained here must have been."""
    if name in RESCALED:
        return rescaled(load(RESCALED[name], folder))
    if name in images.NETWORKS:
        return images.load(name)
    model = with_relu() if name == "separable_relu" else sequence_networks.NETWORKS[name][0]()
    model.load_state_dict(safetensors.torch.load_file(folder / f"{name}_weights.safetensors"))
    return model.eval()


def learn(name, folder):
    """Trains the network and keeps its weights."""
    if name == "separable_relu":
        parts = digits()
        model = train(with_relu, *parts["train"], check=parts["validate"])
        _, validated, _ = evaluate(model, *parts["validate"])
        _, tested, _ = evaluate(model, *parts["test"])
        print(f"{name}: validation {validated}/250, test {tested}/647")
    else:
        model = sequence_networks.train(name)
    safetensors.torch.save_file(model.state_dict(), folder / f"{name}_weights.safetensors")


def exported(name, model):
    """The ONNX file's bytes."""
    if name in sequence_networks.NETWORKS:
        return sequence_networks.to_onnx(model)
    writer = Writer()
    writer.write(model, "", "image")
    writer.nodes[-1].output[0] = "logits"
    weights = {key: value.numpy() for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        writer.nodes,
        name,
        [value("image", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [value("logits", onnx.TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, key) for key, value in sorted(weights.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", images.OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def samples(name, sequences):
    """(calibration, test): tensors by name; of characters so many sequences for the test."""
    if name in sequence_networks.NETWORKS:
        text, held_out = sequence_networks.texts()
        known, _ = sequence_networks.pieces(text, sequence_networks.SEQUENCES)
        tokens, labels = sequence_networks.pieces(held_out, sequences)
        return {"tokens": known}, {"tokens": tokens, "labels": labels}
    parts = digits()
    tests, labels = parts["test"]
    return {"image": parts["train"][0][:CALIBRATION]}, {"image": tests, "labels": labels}


def float_error(exact, logits):
    return np.abs(logits - exact).max() / np.abs(exact).max()


def by_tool(tool, path, inputs):
    """The logits that quantize_onnx computes in float."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        safetensors.torch.save_file(inputs, given)
        command = [tool, path, "--mode", "float", "--input", given, "--output", made, "--threads", 1]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        return safetensors.numpy.load_file(made)["logits"]


def make(name, folder, again, tool, sequences):
    """Writes the three files of a network, after training it where it must be."""
    kept = folder / f"{name}_weights.safetensors"
    if name not in FIXED and name not in RESCALED and (again or not kept.exists()):
        learn(name, folder)
    if name in RESCALED and not (folder / f"{RESCALED[name]}_weights.safetensors").exists() and RESCALED[name] not in FIXED:
        learn(RESCALED[name], folder)
    raw = (FIXTURES / f"digits_{name}.onnx").read_bytes() if name in FIXED else exported(name, load(name, folder))
    path = folder / f"{name}.onnx"
    path.write_bytes(raw)
    calibration, tests = samples(name, sequences)
    safetensors.torch.save_file({key: value.contiguous() for key, value in calibration.items()}, folder / f"{name}_calibration.safetensors")
    safetensors.torch.save_file({key: value.contiguous() for key, value in tests.items()}, folder / f"{name}_test.safetensors")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    labels = tests.pop("labels")
    (logits,) = session.run(None, {key: value.numpy() for key, value in tests.items()})
    found = torch.nn.functional.cross_entropy(torch.from_numpy(logits).flatten(0, -2), labels.flatten()).item()
    right = (logits.argmax(-1) == labels.numpy()).mean()
    print(f"{path}: {len(raw)} bytes, loss {found:.5f}, right {100 * right:.2f} % of {labels.numel()}")
    errors = {}
    # The CNN has no module here: `digits_onnx.py` compares it.
    if name != "cnn":
        with torch.no_grad():
            exact = load(name, folder)(*tests.values()).numpy()
        errors["ONNX Runtime"] = float_error(exact, logits)
    if name in RESCALED:
        with torch.no_grad():
            errors["the network before rescaling"] = float_error(load(RESCALED[name], folder)(*tests.values()).numpy(), exact)
    if tool:
        errors[Path(tool).name] = float_error(logits, by_tool(tool, path, tests))
    for other, error in errors.items():
        print(f"  {error:.1e} from {other}")
        assert error < 1e-5, error


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--again", action="store_true", help="train although there are weights")
    parser.add_argument("--sequences", type=int, default=sequence_networks.SEQUENCES, help="to test the character networks with")
    parser.add_argument("--tool", help="quantize_onnx, to compare its float logits")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}; default all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.networks or NETWORKS:
        make(name, arguments.out, arguments.again, arguments.tool, arguments.sequences)


if __name__ == "__main__":
    main()
