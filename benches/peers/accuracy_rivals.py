"""What others make of a network: the ways to quantize it that `accuracy.py` compares with.

Every generator yields (tool, way, run, bits): `run()` quantizes, and returns the logits of the test samples; `bits` are those of a
quantized weight with its share of scales and zero points as the tool stores them, None where the case says them.
"""

import contextlib
import copy
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, HQQWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from quantized_onnx_fixtures import session
from static_digits import Called, torch_network
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.fake_quantize import disable_observer
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    quant_primitives,
    quantize_,
)
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm, to_nf4
from train_accuracy_networks import load


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def by_torch(model, inputs, batch=16):
    """Logits of a module, some samples at a time."""
    (samples,) = (torch.from_numpy(value) for value in inputs.values())
    with torch.no_grad():
        return torch.cat([model(part) for part in samples.split(batch)]).numpy()


def by_onnxruntime(model, inputs, batch=16):
    run = session(model).run
    (name, samples), *_ = inputs.items()
    return np.concatenate([run(None, {name: samples[i : i + batch]})[0] for i in range(0, len(samples), batch)])


# Weights alone.


def weight_only(network, bits, group):
    yield from onnxruntime_weights(network, bits, group)
    yield from torchao_weights(network, bits, group)


def onnxruntime_weights(network, bits, group):
    """MatMulNBits, which has no 3 bits; HQQ keeps zero points as floats."""
    if bits not in (2, 4):
        return
    ways = {
        "symmetric": (DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=True, bits=bits), bits + 32 / group),
        "asymmetric": (DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=False, bits=bits), bits + (32 + bits) / group),
        "HQQ": (HQQWeightOnlyQuantConfig(block_size=group, bits=bits), bits + 64 / group),
    }
    for way, (config, held) in ways.items():

        def run(config=config):
            quantizer = MatMulNBitsQuantizer(onnx.load(network.path), algo_config=config)
            quantizer.process()
            made = quantizer.model.model
            count = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
            assert count == len(linears(load(network.name, network.folder))), count
            return by_onnxruntime(made, network.tests)

        yield "onnxruntime", f"MatMulNBits {way}", run, held


def torchao_weights(network, bits, group):
    """Its configurations, and the algorithms behind Int4WeightOnlyConfig, whose kernels want bfloat16 and other devices."""
    intx, affine = getattr(torch, f"int{bits}"), IntxChooseQParamsAlgorithm.AFFINE
    ways = {
        "symmetric": (MappingType.SYMMETRIC, affine),
        "symmetric, no clipping": (MappingType.SYMMETRIC_NO_CLIPPING_ERR, affine),
        "asymmetric": (MappingType.ASYMMETRIC, affine),
        "HQQ scale only": (MappingType.SYMMETRIC, IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY),
    }
    for way, (mapping, algorithm) in ways.items():

        config = IntxWeightOnlyConfig(
            weight_dtype=intx, granularity=PerGroup(group), mapping_type=mapping, intx_choose_qparams_algorithm=algorithm
        )

        def run(config=config):
            model = load(network.name, network.folder)
            quantize_(model, config)
            return by_torch(model, network.tests)

        yield "torchao", f"intx {way}", run, bits + (32 + (bits if mapping == MappingType.ASYMMETRIC else 0)) / group

    def replaced(approximate):
        model = load(network.name, network.folder)
        for layer in linears(model):
            layer.weight.data = approximate(layer.weight.data)
        return by_torch(model, network.tests)

    def affine_float_zero(optimize):
        def approximate(weight):
            codes, scale, zero, _ = quant_primitives._choose_qparams_and_quantize_affine_hqq(
                weight, nbits=bits, group_size=group, optimize=optimize, compute_dtype=torch.float32, device="cpu", raw_output=True
            )
            values = (codes.float().reshape(-1, group) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)
            return values.reshape(weight.shape)

        return approximate

    yield "torchao", "HQQ", lambda: replaced(affine_float_zero(True)), bits + 64 / group
    yield "torchao", "min-max, float zero", lambda: replaced(affine_float_zero(False)), bits + 64 / group
    if bits == 4:
        # Scales in 8 bits, 256 at a time, each of those with a float.
        yield "torchao", "NF4", lambda: replaced(lambda w: to_nf4(w, group, 64).get_original_weight()), 4 + (8 + 32 / 64) / group


# Eight bits.


def dynamic(network):
    """Activations quantized as they come: torchao by token, ONNX Runtime by tensor, so it gets one sequence a call."""
    if network.name == "transformer":
        configurations = {
            "int8, symmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.SYMMETRIC),
            "int8, asymmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC),
            "intx 8, asymmetric": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0)),
            "intx 8, groups of 32": Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerGroup(32)),
        }
        for way, config in configurations.items():

            def run(config=config):
                model = load(network.name, network.folder)
                quantize_(model, config)
                return by_torch(model, network.tests)

            yield "torchao", way, run, None
        # 16 is the shortest block that it takes.
        for symmetric, block in itertools.product((False, True), (32, 16)):

            def run(symmetric=symmetric, block=block):
                config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=8, accuracy_level=4)
                quantizer = MatMulNBitsQuantizer(onnx.load(network.path), algo_config=config)
                quantizer.process()
                return by_onnxruntime(quantizer.model.model, network.tests)

            # Level 4: activations in int8, by block.
            yield "onnxruntime", f"MatMulNBits 8 {'symmetric' if symmetric else 'asymmetric'}, blocks of {block}, level 4", run, None

    def eager():
        model = torch.ao.quantization.quantize_dynamic(load(network.name, network.folder), {nn.Linear, nn.LSTM}, torch.qint8)
        # A range for each call, so one sequence, as for ONNX Runtime.
        return by_torch(model, network.tests, 1)

    yield "torch", "quantize_dynamic", eager, None
    for per_channel in (False, True):
        for weight in ("QInt8", "QUInt8"):

            def run(per_channel=per_channel, weight=weight):
                with tempfile.TemporaryDirectory() as directory:
                    made = Path(directory) / "made.onnx"
                    quantize_dynamic(network.path, made, per_channel=per_channel, reduce_range=False, weight_type=QuantType[weight])
                    return by_onnxruntime(onnx.load(made), network.tests, 1)

            yield "onnxruntime", f"dynamic, per {'channel' if per_channel else 'tensor'}, {weight}", run, None


class Samples(CalibrationDataReader):
    """The calibration samples, some at a time."""

    def __init__(self, inputs, batch):
        (name, samples), *_ = inputs.items()
        self.batches = iter([{name: samples[i : i + batch]} for i in range(0, len(samples), batch)])

    def get_next(self):
        return next(self.batches, None)


def statically(network, batch=16, linear=False, **options):
    """Logits of what ONNX Runtime's quantize_static makes, of everything or of products with a constant alone."""
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        prepared, made = Path(directory) / "prepared.onnx", Path(directory) / "made.onnx"
        quant_pre_process(network.path, prepared)
        if linear:
            # Its MatMulConstBOnly is without effect where pairs are inserted.
            graph = onnx.load(prepared).graph
            constant = {tensor.name for tensor in graph.initializer}
            products = [node for node in graph.node if node.op_type == "MatMul" and not constant & set(node.input)]
            options |= {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": [node.name for node in products]}
        quantize_static(prepared, made, Samples(network.calibration, batch), quant_format=QuantFormat.QDQ, **options)
        return by_onnxruntime(onnx.load(made), network.tests)


CALIBRATORS = {
    "MinMax": CalibrationMethod.MinMax,
    # At its default bins this is min-max: 128 of them for 128 levels leave one candidate.
    "Entropy": CalibrationMethod.Entropy,
    "Percentile 99.999": CalibrationMethod.Percentile,
}


def static(network):
    """ONNX Runtime's static quantization of a transformer: as it comes, and the choices of calibrator and of operators."""
    yield "onnxruntime", "static, default", lambda: statically(network), None
    scopes = {"": {}, ", MatMul alone": {"op_types_to_quantize": ["MatMul"]}, ", linear layers alone": {"linear": True}}
    for calibrator, method in CALIBRATORS.items():
        for scope, options in scopes.items():
            chosen = {"per_channel": True, "activation_type": QuantType.QUInt8, "calibrate_method": method, **options}
            yield "onnxruntime", f"{calibrator}, per channel, u8{scope}", lambda chosen=chosen: statically(network, **chosen), None


def images(network):
    """Static eight bits of a convolutional network: ONNX Runtime per tensor and per channel, PyTorch by FX."""
    for per_channel in (False, True):
        for activations in ("QInt8", "QUInt8"):
            way = f"MinMax, per {'channel' if per_channel else 'tensor'}, {activations}"
            options = {"per_channel": per_channel, "activation_type": QuantType[activations]}
            yield "onnxruntime", way, lambda options=options: statically(network, batch=100, **options), None

    def fx(backend, mapping):
        torch.backends.quantized.engine = backend
        (samples,) = (torch.from_numpy(value) for value in network.calibration.values())
        model = prepare_fx(wrapped(network), mapping, (samples[:1],))
        with torch.no_grad():
            model(samples)
        return by_torch(convert_fx(model), network.tests)

    for backend in ("x86", "onednn"):
        yield "torch", f"FX, {backend}", lambda backend=backend: fx(backend, get_default_qconfig_mapping(backend)), None


# Four bits of weights, eight of activations.


def wrapped(network):
    if network.name == "cnn":
        # Beside the networks that `load` knows.
        return torch_network("cnn")
    return Called(load(network.name, network.folder))


def w4a8(network):
    """PyTorch's fake quantization by FX, weights per channel; ONNX Runtime's int4 weights."""
    observers = {"min-max": MinMaxObserver, "histogram": HistogramObserver}
    for observer, activation in observers.items():
        for scheme in ("symmetric", "affine"):

            def run(activation=activation, scheme=scheme):
                config = QConfig(
                    activation=FakeQuantize.with_args(observer=activation, quant_min=0, quant_max=255, dtype=torch.quint8),
                    weight=FakeQuantize.with_args(
                        observer=PerChannelMinMaxObserver,
                        quant_min=-8,
                        quant_max=7,
                        dtype=torch.qint8,
                        qscheme=getattr(torch, f"per_channel_{scheme}"),
                    ),
                )
                torch.backends.quantized.engine = "onednn"
                (samples,) = (torch.from_numpy(value) for value in network.calibration.values())
                mapping = QConfigMapping().set_global(config)
                model = prepare_qat_fx(copy.deepcopy(wrapped(network)).train(), mapping, (samples[:1],)).eval()
                with torch.no_grad():
                    model(samples)
                    model.apply(disable_observer)
                return by_torch(model, network.tests)

            yield "torch", f"fake-quantize, {observer}, weights {scheme}", run, None
    for calibrator, method in CALIBRATORS.items():
        for per_channel in (True, False):
            options = {
                "per_channel": per_channel,
                "weight_type": QuantType.QInt4,
                "activation_type": QuantType.QUInt8,
                "calibrate_method": method,
            }
            way = f"int4, {calibrator}, per {'channel' if per_channel else 'tensor'}, u8"
            yield "onnxruntime", way, lambda options=options: statically(network, batch=100, **options), None
