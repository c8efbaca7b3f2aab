"""Runs what `quantize_onnx --export` writes of the digits networks in ONNX Runtime, beside what it makes of the same images itself.

    python tests/reference/exported.py target/release/examples/quantize_onnx

needs onnx, onnxruntime and safetensors. For each network and mode: the checker passes, both predict the same, and no output is
further from ours than one step of an 8-bit grid over the outputs' range (they are floats themselves).
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
NETWORKS = ["digits_cnn", "digits_residual", "digits_separable", "digits_squeeze"]
MODES = ["float", "static", "dynamic"] + [f"weight-only {weights}" for weights in ["int8", "int4:g32", "uint4:g16", "nf4", "offset4"]]


def main(tool):
    digits = load_file(ROOT / "examples/data/digits.safetensors")
    images = {part: digits[f"{part}.images"].astype(np.float32) / 16 for part in ["train", "test"]}
    labels = digits["test.labels"]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file({"image": images["train"][:100]}, folder / "calibration.safetensors")
        save_file({"image": images["test"]}, folder / "test.safetensors")
        for network in NETWORKS:
            for mode in MODES:
                exported = folder / f"{network}.onnx"
                mode, *weights = mode.split()
                command = [tool, ROOT / f"tests/fixtures/{network}.onnx", "--mode", mode, "--export", exported]
                command += [part for format in weights for part in ["--weights", format]]
                command += ["--input", folder / "test.safetensors", "--output", folder / "out.safetensors"]
                if mode == "static":
                    command += ["--calibration", folder / "calibration.safetensors"]
                subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
                ours = next(iter(load_file(folder / "out.safetensors").values()))
                model = onnx.load(exported)
                onnx.checker.check_model(model, full_check=True)
                session = onnxruntime.InferenceSession(exported.read_bytes(), providers=["CPUExecutionProvider"])
                name = session.get_inputs()[0].name
                # The range of an image is that of the tensor where the tensor is one image.
                parts = images["test"][:, None] if mode == "dynamic" else [images["test"]]
                theirs = np.concatenate([session.run(None, {name: part})[0] for part in parts])
                batch = session.run(None, {name: images["test"]})[0] if mode == "dynamic" else None
                floats = mode in ["float", "weight-only"]
                step = 1e-5 * np.abs(ours).max() if floats else float(ours.max() - ours.min()) / 255
                worst = np.abs(ours - theirs).max()
                flips = int((ours.argmax(1) != theirs.argmax(1)).sum())
                right = [int((outputs.argmax(1) == labels).sum()) for outputs in [ours, theirs]]
                bits = int((ours.view(np.int32) == theirs.view(np.int32)).sum())
                line = f"{network:17} {' '.join([mode, *weights]):22} worst {worst:.2e} step {step:.2e}  flips {flips}  right {right[0]} and {right[1]}"
                line += f"  same bits {bits} of {ours.size}"
                if batch is not None:
                    signal = 10 * np.log10((ours**2).sum() / ((ours - batch) ** 2).sum())
                    line += f"  one range for the batch: {signal:.1f} dB from ours, {int((ours.argmax(1) != batch.argmax(1)).sum())} flips"
                failures += flips > 0 or worst > step
                print(line, "" if flips == 0 and worst <= step else "  FAILED")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main(sys.argv[1])
