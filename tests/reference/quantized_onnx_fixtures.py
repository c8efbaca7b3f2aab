"""Quantize the digits networks by ONNX Runtime's own tool, and record its values between their layers.

Run from the repository root: python tests/reference/quantized_onnx_fixtures.py

Writes, from the ONNX files that `train_static_networks.py` wrote,
  tests/fixtures/digits_<network>_<form>.onnx  the models of MODELS below
  tests/fixtures/digits_quantized.safetensors  for the first test images, ONNX Runtime's codes of every 8-bit tensor
                                               between the layers, and its logits
The tool folds BatchNormalization before it quantizes. Calibration: the first 100 training images, min-max.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from refio import DATA, FIXTURES, ROOT, save

IMAGES = 8
CALIBRATION = 100

U8 = {"activation_type": QuantType.QUInt8}
I8 = {"activation_type": QuantType.QInt8}
QOPERATOR = {"quant_format": QuantFormat.QOperator}
# Network and form: the tool's options. Weights are i8 and symmetric.
MODELS = {
    ("residual", "qdq"): {**U8, "per_channel": True},
    ("residual", "qdq_i8"): {**I8, "per_channel": False},
    ("residual", "qoperator"): {**U8, **QOPERATOR, "per_channel": True},
    ("separable", "qdq"): {**U8, "per_channel": True},
    ("separable", "qoperator_i8"): {**I8, **QOPERATOR, "per_channel": True},
    ("squeeze", "qoperator"): {**U8, **QOPERATOR, "per_channel": True},
}


class Samples(CalibrationDataReader):
    """The calibration images in batches."""

    def __init__(self, batch=CALIBRATION):
        images = digits("train")[:CALIBRATION]
        self.batches = iter([{"image": images[i : i + batch]} for i in range(0, CALIBRATION, batch)])

    def get_next(self):
        return next(self.batches, None)


def digits(part):
    """The network's input: f32 [n, 1, 8, 8] in 0..1."""
    images = safetensors.numpy.load_file(DATA / "digits.safetensors")[f"{part}.images"]
    return images.astype(np.float32) / np.float32(16)


def prepared(network):
    """The network with BatchNormalization folded and shapes inferred, as the tool asks for."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "prepared.onnx"
        quant_pre_process(FIXTURES / f"digits_{network}.onnx", result)
        return onnx.load(result)


def quantized(model, batch=CALIBRATION, **options):
    """What the tool makes of a `prepared` network."""
    options = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8} | options
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "quantized.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        quantize_static(copy, result, Samples(batch), **options)
        return onnx.load(result)


def session(model, optimized=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def boundaries(model, images, optimized=False):
    """The codes of every 8-bit tensor that a node computes from the images, in the order of execution."""
    constant = {tensor.name for tensor in model.graph.initializer}
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = []
    for node in model.graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
        else:
            names.extend(name for name in node.output if name != "logits")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = dict(zip(names, session(model, optimized).run(names, {"image": images})))
    return {name: value for name, value in values.items() if value.dtype in (np.uint8, np.int8)}


def shortened(model):
    """Without what inference doesn't need: the tool's records of shapes and of itself."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    return model


def decibels(exact, approximate):
    exact = exact.astype(np.float64)
    return 10 * np.log10((exact**2).sum() / ((exact - approximate) ** 2).sum())


def main():
    logging.disable(logging.WARNING)
    tests = digits("test")
    images = tests[:IMAGES]
    tensors, order = {}, {}
    for network in dict.fromkeys(network for network, _ in MODELS):
        model = prepared(network)
        (exact,) = session(model).run(None, {"image": tests})
        for (_, form), options in ((key, value) for key, value in MODELS.items() if key[0] == network):
            name = f"{network}_{form}"
            result = shortened(quantized(model, **options))
            onnx.checker.check_model(result)
            raw = result.SerializeToString(deterministic=True)
            path = FIXTURES / f"digits_{name}.onnx"
            path.write_bytes(raw)

            codes = boundaries(result, images)
            order[name] = list(codes)
            tensors |= {f"{name}/{tensor}": value for tensor, value in codes.items()}
            for key, optimized in {"logits": True, "logits_unoptimized": False}.items():
                (tensors[f"{name}/{key}"],) = session(result, optimized).run(["logits"], {"image": images})

            (logits,) = session(result).run(None, {"image": tests})
            flips = (logits.argmax(1) != exact.argmax(1)).sum()
            operators = dict.fromkeys(f"{node.domain}.{node.op_type}".lstrip(".") for node in result.graph.node)
            print(f"{path.relative_to(ROOT)}: {len(raw)} bytes, {decibels(exact, logits):.2f} dB, {flips} flips")
            print(f"  {len(codes)} boundaries; {', '.join(operators)}")
    save(
        FIXTURES / "digits_quantized.safetensors",
        tensors,
        {
            "order": order,
            "images": f"the first {IMAGES} test images / 16",
            "codes": "<model>/<tensor>: onnxruntime's values with graph optimizations disabled",
            "logits": "<model>/logits with all optimizations, <model>/logits_unoptimized with none",
        },
    )


if __name__ == "__main__":
    main()
