"""Whole networks through the tool `quantize_onnx`, in float and quantized, against ONNX Runtime in float.

    python onnx_models.py [MODEL]... [--models DIR] [--tool PATH]

The models are those of the benchmarks (`resnet50.onnx` and the others in DIR), the inputs random from a
fixed seed. Float outputs must be within 1e-3 of ONNX Runtime's, largest difference over largest value; of
dynamic quantization the signal-to-noise ratio against the tool's own float outputs is printed, and the
encoder's must be at least 30 dB. The exit status is 1 when a bound is missed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from refio import ROOT, load_tensors, store_tensors

SEED = 20240229
RELATIVE = 1e-3
# Of random weights only the encoder's sums are like those of trained ones.
DECIBELS = {"encoder6x384": 30.0}
MODELS = Path(os.environ.get("LOWPREC_PEERS", Path.home() / ".cache" / "lowprec-peers")) / "models"


def image(rng):
    return {"x": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}


def sentence(rng, tokens=128, padding=16):
    mask = np.ones((1, tokens), np.int64)
    mask[:, tokens - padding :] = 0
    return {"input_ids": rng.integers(0, 20000, (1, tokens)), "attention_mask": mask}


NETWORKS = {"resnet50": image, "mobilenet_v2": image, "resnext50_32x4d": image, "encoder6x384": sentence}


def reference(path, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run(tool, path, mode, inputs, directory):
    given, made = directory / "input.safetensors", directory / f"{mode}.safetensors"
    store_tensors(given, inputs)
    command = [tool, path, "--mode", mode, "--input", given, "--output", made, "--threads", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_tensors(made)


def relative(expected, got):
    """The largest difference over the largest value, of the worst output."""
    assert expected.keys() == got.keys(), f"outputs {sorted(got)}, not {sorted(expected)}"
    worst = 0.0
    for name, value in expected.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
        value, other = value.astype(np.float64), got[name].astype(np.float64)
        worst = max(worst, np.abs(value - other).max() / np.abs(value).max())
    return worst


def sqnr(expected, got):
    """Decibels of signal over noise, all outputs together."""
    signal = sum(np.square(value, dtype=np.float64).sum() for value in expected.values())
    noise = sum(np.square(value - got[name], dtype=np.float64).sum() for name, value in expected.items())
    return 10 * np.log10(signal / noise) if noise else np.inf


def main():
    parser = argparse.ArgumentParser(description="Whole networks through quantize_onnx against ONNX Runtime.")
    parser.add_argument("model", nargs="*", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--models", type=Path, default=MODELS, metavar="DIR")
    parser.add_argument("--tool", type=Path, default=ROOT / "target" / "release" / "examples" / "quantize_onnx")
    options = parser.parse_args()
    if unknown := set(options.model) - NETWORKS.keys():
        parser.error(f"no network is called {', '.join(unknown)}")
    if not options.tool.exists():
        parser.error(f"{options.tool} is not there: cargo build --release --example quantize_onnx")
    missed = False
    print(f"onnxruntime {onnxruntime.__version__}\n\n{'model':16} float: relative   dynamic: dB  relative")
    for name in options.model or NETWORKS:
        inputs = NETWORKS[name](np.random.default_rng(SEED))
        path = options.models / f"{name}.onnx"
        with tempfile.TemporaryDirectory() as temporary:
            ours, quantized = (run(options.tool, path, mode, inputs, Path(temporary)) for mode in ("float", "dynamic"))
        expected = reference(path, inputs)
        error, decibels = relative(expected, ours), sqnr(ours, quantized)
        # A NaN is below no bound.
        held = error <= RELATIVE and decibels >= DECIBELS.get(name, 0)
        missed |= not held
        loss = relative(ours, quantized)
        print(f"{name:16} {error:15.2e} {decibels:13.1f} {loss:9.2e}{'' if held else '  missed'}", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
