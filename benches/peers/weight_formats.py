"""How near ONNX Runtime's and torchao's 4-bit and 3-bit weights come to the weights of trained networks.

Run from the repository root: python benches/peers/weight_formats.py [--all] [MODEL.onnx]...

A weight counts as a matrix: output channels by all that goes into one of them. Taken are those of the digits networks
whose rows have at least 32 values, the smallest group; of other models, what is named on the command line. Every group
size from 32 to 128 that the peer takes is tried: ONNX Runtime's 32, 64 and 128, to multiples of which it pads rows, so
that its 4 bits become up to 9.6; torchao's that divide a row. Per matrix, format and peer, in decibels:
10 log10(sum w^2 / sum (w - q)^2), q in f32 from the codes, scales and zero points that the peer stores.

Without MODEL.onnx the best of all is written to tests/fixtures/weight_format_peers.json: by network, tensor and bits, the
decibels, the format, and its bits per weight with scales and zero points as the peer stores them (of f32 weights: f32).
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from torchao.quantization import quant_primitives as primitives
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm, IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
NETWORKS = ("cnn", "residual", "separable", "squeeze")
BLOCKS = (32, 64, 128)


def decibels(weight, approximated):
    weight, approximated = weight.astype(np.float64), np.asarray(approximated, dtype=np.float64)
    return float(10 * np.log10((weight**2).sum() / ((weight - approximated) ** 2).sum()))


def matrices(path):
    for tensor in onnx.load(path).graph.initializer:
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.dtype == np.float32 and weight.ndim >= 2:
            weight = weight.reshape(weight.shape[0], -1)
            if weight.shape[1] >= min(BLOCKS):
                yield tensor.name, np.ascontiguousarray(weight)


def of_one_product(weight):
    """A model that multiplies by the weight."""
    rows, columns = weight.shape
    value = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [value("x", float32, ["n", columns])],
        [value("y", float32, ["n", rows])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])


def dequantized(model, columns):
    """The values that a model's MatMulNBits stands for."""
    (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    packed, scales = stored[node.input[1]], stored[node.input[2]]
    rows, blocks, _ = packed.shape
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, blocks, -1).astype(np.float32)
    zeros = np.full((rows, blocks), 8, dtype=np.float32)
    if len(node.input) > 3 and node.input[3]:
        zeros = stored[node.input[3]]
        if zeros.dtype == np.uint8:
            zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)[:, :blocks].astype(np.float32)
    values = (codes - zeros.reshape(rows, blocks, 1)) * scales.reshape(rows, blocks, 1)
    held = sum(stored[name].nbytes for name in node.input[1:4] if name)
    return values.reshape(rows, -1)[:, :columns], held


def by_onnxruntime(weight):
    rows, columns = weight.shape
    for block in BLOCKS:
        ways = {
            "symmetric": DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True),
            "asymmetric": DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False),
            "HQQ": HQQWeightOnlyQuantConfig(block_size=block),
        }
        for way, config in ways.items():
            quantizer = MatMulNBitsQuantizer(of_one_product(weight), algo_config=config)
            quantizer.process()
            values, held = dequantized(quantizer.model.model, columns)
            yield 4, f"onnxruntime MatMulNBits {way} {block}", decibels(weight, values), 8 * held / weight.size


def by_torchao(weight):
    rows, columns = weight.shape
    tensor = torch.from_numpy(weight)
    groups = [size for size in range(min(BLOCKS), max(BLOCKS) + 1) if columns % size == 0]
    for bits in (4, 3):
        for size in groups:
            ways = {
                "symmetric": (primitives.MappingType.SYMMETRIC, IntxChooseQParamsAlgorithm.AFFINE),
                "asymmetric": (primitives.MappingType.ASYMMETRIC, IntxChooseQParamsAlgorithm.AFFINE),
                "HQQ scale only": (primitives.MappingType.SYMMETRIC, IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY),
            }
            for way, (mapping, algorithm) in ways.items():
                quantized = IntxUnpackedToInt8Tensor.from_hp(
                    tensor,
                    (1, size),
                    getattr(torch, f"int{bits}"),
                    mapping_type=mapping,
                    intx_choose_qparams_algorithm=algorithm,
                )
                zero = bits if way == "asymmetric" else 0
                yield bits, f"torchao intx {way} {size}", decibels(weight, quantized.dequantize()), bits + (32 + zero) / size
            for optimize, way in ((True, "HQQ"), (False, "min-max, float zero")):
                codes, scale, zero, _ = primitives._choose_qparams_and_quantize_affine_hqq(
                    tensor,
                    nbits=bits,
                    group_size=size,
                    optimize=optimize,
                    compute_dtype=torch.float32,
                    device="cpu",
                    raw_output=True,
                )
                values = ((codes.float().reshape(-1, size) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)).reshape(rows, columns)
                yield bits, f"torchao {way} {size}", decibels(weight, values), bits + 64 / size
    if weight.size % (64 * 256) == 0:
        yield 4, "torchao NF4 64", decibels(weight, to_nf4(tensor, 64, 256).get_original_weight()), 4.127
    elif weight.size % 64 == 0:
        blocks = weight.size // 64
        scalers = max(size for size in range(1, 257) if blocks % size == 0)
        yield 4, "torchao NF4 64", decibels(weight, to_nf4(tensor, 64, scalers).get_original_weight()), 4.127


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every format, not only the best of each number of bits")
    parser.add_argument("models", nargs="*", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    paths = {path.name: path for path in arguments.models} or {name: FIXTURES / f"digits_{name}.onnx" for name in NETWORKS}
    best = {}
    for network, path in paths.items():
        for name, weight in matrices(path):
            found = {}
            for bits, way, reached, held in [*by_onnxruntime(weight), *by_torchao(weight)]:
                if arguments.all:
                    print(f"{network:10} {name:32} {bits} bits  {reached:6.2f} dB  {held:5.2f} bits  {way}")
                if reached > found.get(str(bits), (-np.inf,))[0]:
                    found[str(bits)] = (round(reached, 4), way, round(held, 4))
            best.setdefault(network, {})[name] = found
            for bits, (reached, way, held) in found.items():
                print(f"{network:10} {name:32} {str(weight.shape):12} best of {bits} bits: {reached:.2f} dB, {held:.2f} bits, {way}")
    if not arguments.models:
        path = FIXTURES / "weight_format_peers.json"
        path.write_text(json.dumps(best, indent=1) + "\n")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
