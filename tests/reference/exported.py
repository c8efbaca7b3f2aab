"""Runs what `quantize_onnx --export` writes of the digits networks in ONNX Runtime, beside what it makes of the same images itself.

    python tests/reference/exported.py target/release/examples/quantize_onnx

needs onnx, onnxruntime and safetensors. For each network and mode the checker passes and both predict the same, and

- float, weights alone: no output is further from ours than 1e-5 of the largest;
- static: no code that any layer writes, of any image, is further from ours than one step, and no output than one step of the last codes, but
  of the separable network three: there the fused kernels of ONNX Runtime round one image otherwise than itself where it shows its codes;
- dynamic with one range for the tensor: of the whole test set at once no output is further from ours than one step of the last codes, those
  of the last DynamicQuantizeLinear; with a range for each image the same of each image by itself.

Outputs are floats on the finer grid of sums. Its unit, the step of the last codes times the least scale of the last layer's weights, is
told too, with the number of images that differ by more than half of it: there some code before was rounded the other way.
"""

import json
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
FORMATS = ["int8", "int16", "int4:g32", "int3:g20", "uint4:g16", "nf4", "nf4:g20", "offset4", "kmeans4:g32:own", "shift4:g32", "mxfp4", "trellis3:g20:log4"]
# Steps of the last codes that outputs of a static network may be off.
MOST = {network: 3 if network == "digits_separable" else 1 for network in NETWORKS}
MODES = ["float", "static", "dynamic", "dynamic tensor"] + [f"weight-only {weights}" for weights in FORMATS]


def grids(model, parts):
    """The step of the last codes, and the unit of the last layer's sums: of each part of the images where they are measured when it runs."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    last = [node for node in model.graph.node if node.op_type in ["QuantizeLinear", "DynamicQuantizeLinear"]][-1]
    weights = np.abs([constants[name] for name in constants if name.endswith(".weight_scale")][-1]).min()
    if last.op_type == "QuantizeLinear":
        step = float(constants[last.input[1]])
        return step, step * weights
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.append(onnx.helper.make_tensor_value_info(last.output[1], onnx.TensorProto.FLOAT, []))
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    steps = np.array([float(session.run([last.output[1]], {name: image})[0]) for image in parts])
    return steps, steps * weights


def codes(tool, model, folder, images):
    """Of all codes that the file's QuantizeLinear nodes write: the largest difference from ours, how many differ, and how many there are."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    for name in names:
        shape = [f"{name}_{axis}" for axis in range(ranks[name])]
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape))
    path = folder / "tapped.onnx"
    onnx.save(tapped, path)
    run = [tool, path, "--mode", "float", "--input", folder / "test.safetensors", "--output", folder / "codes.safetensors"]
    subprocess.run([str(part) for part in run], check=True, stdout=subprocess.DEVNULL)
    ours = load_file(folder / "codes.safetensors")
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = dict(zip(names, session.run(names, {session.get_inputs()[0].name: images})))
    apart = [np.abs(ours[name].astype(int) - theirs[name].astype(int)) for name in names]
    return max(part.max() for part in apart), sum(int((part > 0).sum()) for part in apart), sum(part.size for part in apart)


def main(tool):
    digits = load_file(ROOT / "examples/data/digits.safetensors")
    images = {part: digits[f"{part}.images"].astype(np.float32) / 16 for part in ["train", "test"]}
    labels = digits["test.labels"]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file({"image": images["train"][:100]}, folder / "calibration.safetensors")
        save_file({"image": images["test"], "labels": labels}, folder / "test.safetensors")
        for network in NETWORKS:
            for mode in MODES:
                exported = folder / f"{network}.onnx"
                mode, *choice = mode.split()
                command = [tool, ROOT / f"tests/fixtures/{network}.onnx", "--mode", mode, "--export", exported]
                command += [part for what in choice for part in ["--activations-per" if mode == "dynamic" else "--weights", what]]
                command += ["--input", folder / "test.safetensors", "--output", folder / "out.safetensors", "--json"]
                if mode == "dynamic":
                    # Ranges are compared on as many as run at once below.
                    command += ["--batch", str(len(labels))]
                if mode == "static":
                    command += ["--calibration", folder / "calibration.safetensors"]
                report = json.loads(subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE).stdout)
                ours = next(iter(load_file(folder / "out.safetensors").values()))
                model = onnx.load(exported)
                onnx.checker.check_model(model, full_check=True)
                session = onnxruntime.InferenceSession(exported.read_bytes(), providers=["CPUExecutionProvider"])
                name = session.get_inputs()[0].name
                # The range of an image is that of the tensor where the tensor is one image.
                parts = images["test"][:, None] if mode == "dynamic" and not choice else [images["test"]]
                theirs = np.concatenate([session.run(None, {name: part})[0] for part in parts])
                floats = mode in ["float", "weight-only"]
                steps, units = grids(model, parts) if not floats else (1e-5 * np.abs(ours).max(), None)
                error = np.abs(ours - theirs).max(1)
                worst, step = (error / steps).max(), np.min(steps)
                told = codes(tool, model, folder, images["test"]) if mode == "static" else None
                flips = int((ours.argmax(1) != theirs.argmax(1)).sum())
                right = [int((outputs.argmax(1) == labels).sum()) for outputs in [ours, theirs]]
                bits = int((ours.view(np.int32) == theirs.view(np.int32)).sum())
                most = MOST[network] if mode == "static" else 1
                line = f"{network:17} {' '.join([mode, *choice]):22} worst {error.max():.2e}, {worst:.3f} of a step, at most {most} (least {step:.2e})  flips {flips}  right {right[0]} and {right[1]}"
                line += f"  same bits {bits} of {ours.size}"
                if told is not None:
                    line += f"  codes {told[1]} of {told[2]} off, by at most {told[0]}"
                if units is not None:
                    line += f"  unit of sums {np.min(units):.2e}: {error.max() / np.min(units):.1f} of it, {int((error > units / 2).sum())} images off by more than half"
                if report["ranges"]:
                    worth = [f"{part['sqnr_db']:.1f} dB, {part['flips']} flips, {part['right']} right" for part in map(report["ranges"].get, ["row", "tensor"])]
                    line += f"  against float, a range for each image: {worth[0]}; one for the tensor: {worth[1]}"
                bad = flips > 0 or worst > most or (told is not None and told[0] > 1)
                failures += bool(bad)
                print(line, "  FAILED" if bad else "")
    sys.exit(bool(failures > 0))


if __name__ == "__main__":
    main(sys.argv[1])
