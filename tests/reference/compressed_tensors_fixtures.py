"""Writes tests/fixtures/compressed_tensors.safetensors: linear layers as the package compressed-tensors compresses them (format
`pack-quantized`), each beside what the package itself makes of it again (`<layer>.expected`, f32).

    pip install compressed-tensors safetensors
    python tests/reference/compressed_tensors_fixtures.py
"""

import pathlib

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[1] / "fixtures/compressed_tensors.safetensors"

# Layer: inputs, outputs, type of scales, how it is quantized.
LAYERS = {
    "int4_group": (64, 12, torch.bfloat16, {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}),
    "int4_group_zeros": (96, 20, torch.float16, {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
    "int4_channel": (50, 9, torch.float32, {"num_bits": 4, "strategy": "channel", "symmetric": True}),
    "int8_channel": (37, 8, torch.bfloat16, {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "int8_channel_zeros": (40, 7, torch.float32, {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "int8_tensor": (33, 5, torch.float32, {"num_bits": 8, "strategy": "tensor", "symmetric": True}),
    "int3_group": (64, 6, torch.float16, {"num_bits": 3, "strategy": "group", "group_size": 16, "symmetric": True}),
    "int6_channel_zeros": (45, 11, torch.float32, {"num_bits": 6, "strategy": "channel", "symmetric": False}),
}


def main():
    torch.manual_seed(0)
    model = torch.nn.Module()
    for name, (inputs, outputs, dtype, _) in LAYERS.items():
        layer = torch.nn.Linear(inputs, outputs, bias=False)
        layer.weight.data = (torch.randn(outputs, inputs) * 0.1 + 0.03).to(dtype)
        setattr(model, name, layer)
    groups = {
        name: QuantizationScheme(targets=[name], weights=QuantizationArgs(type="int", **how), format=CompressionFormat.pack_quantized.value)
        for name, (*_, how) in LAYERS.items()
    }
    config = QuantizationConfig(config_groups=groups, format=CompressionFormat.pack_quantized.value, quantization_status="frozen")
    apply_quantization_config(model, config)
    for name, (*_, how) in LAYERS.items():
        layer, args = getattr(model, name), groups[name].weights
        weight = layer.weight.data
        rows = {"tensor": weight.reshape(1, -1), "channel": weight}.get(how["strategy"])
        if rows is None:
            rows = weight.reshape(weight.shape[0], -1, how["group_size"])
        scale, zero = calculate_qparams(rows.amin(-1), rows.amax(-1), args)
        layer.weight_scale.data = scale.reshape(layer.weight_scale.shape).to(layer.weight_scale.dtype)
        if hasattr(layer, "weight_zero_point"):
            layer.weight_zero_point.data = zero.reshape(layer.weight_zero_point.shape).to(layer.weight_zero_point.dtype)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    compressor.decompress_model(model)
    for name in LAYERS:
        tensors[f"{name}.expected"] = getattr(model, name).weight.detach().float().contiguous()
    save_file(tensors, OUT)
    for name, value in sorted(tensors.items()):
        print(name, value.dtype, list(value.shape))


if __name__ == "__main__":
    main()
