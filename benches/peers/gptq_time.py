"""How long GPTQ takes in PyTorch on one thread, for one layer: the time that the crate's has to keep to.

Run from the repository root: python benches/peers/gptq_time.py [--size 4096] [--rows 512] [--group 128] [--repeat 3]
                                    [--tool target/release/examples/quantize_onnx]

The algorithm as it was published, and as its public implementations compute it: Hessian 2/n X^T X of the calibration rows, columns in the
order of its falling diagonal, damping of a hundredth of the mean diagonal, the upper Cholesky factor of the inverse, columns rounded
one by one with the error fed back in blocks of 128, each group's asymmetric int4 scale and zero point from the least and largest weight
as they then are. Single precision. Inputs are correlated (neighbours by 0.9), so that there is something to gain.

Printed: seconds by the clock and of the processor (the machine may be busy: the fewest of all repetitions), by part; and the decibels of
the outputs, sum y^2 / sum (y - q)^2 on as many other rows, beside plain rounding. With --tool the crate on the same layer and rows, one
thread, the same algorithm (grids of the range, no descent after it) and what it does by default (grids of least squares, three sweeps of
descent): by the clock what `quantize_onnx` says that quantizing took, of the processor all that it did, with reading and running the layer.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import onnx
import safetensors.torch
import torch

BITS = 4
BLOCK = 128
DAMPING = 0.01


def problem(size, rows):
    """Weights [size, size], rows to calibrate on and others."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    inputs = torch.randn(2 * rows, size, generator=generator)
    for i in range(1, size):
        inputs[:, i] = 0.9 * inputs[:, i - 1] + (1 - 0.9**2) ** 0.5 * inputs[:, i]
    # As activations have them: channels of very different size.
    inputs *= torch.exp(0.5 * torch.randn(size, generator=generator))
    return weight, inputs[:rows], inputs[rows:]


def grid(weight):
    """Scale and zero point of every row, from its least and largest value."""
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**BITS - 1)).clamp(min=1e-10)
    return scale, torch.round(-low / scale)


def rounded(weight, scale, zero):
    return scale * (torch.clamp(torch.round(weight / scale) + zero, 0, 2**BITS - 1) - zero)


def plain(weight, group):
    return torch.cat([rounded(part, *grid(part)) for part in weight.split(group, 1)], 1)


class Clock:
    """Seconds by the clock and of the processor since it was last asked, by part."""

    def __init__(self):
        self.parts, self.last = {}, (time.perf_counter(), time.process_time())

    def lap(self, part):
        now = time.perf_counter(), time.process_time()
        self.parts[part] = tuple(a - b for a, b in zip(now, self.last))
        self.last = now


def gptq(weight, inputs, group, clock):
    """The weights, each one a value of its group's grid."""
    hessian = 2 / len(inputs) * (inputs.T @ inputs)
    clock.lap("Hessian")
    weight = weight.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    order = torch.argsort(diagonal, descending=True)
    weight, hessian = weight[:, order], hessian[order][:, order]
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    clock.lap("Cholesky")
    made = torch.empty_like(weight)
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        part, errors = weight[:, start:end].clone(), torch.empty(len(weight), end - start)
        local = upper[start:end, start:end]
        for i in range(end - start):
            if (start + i) % group == 0:
                # The block's own columns have their errors already; a group may reach beyond the block.
                inside = part[:, i : i + group]
                scale, zero = grid(torch.cat([inside, weight[:, end : start + i + group]], 1))
            column = part[:, i]
            value = rounded(column[:, None], scale, zero)[:, 0]
            made[:, start + i] = value
            errors[:, i] = (column - value) / local[i, i]
            part[:, i:] -= errors[:, i : i + 1] * local[i, i:]
        weight[:, end:] -= errors @ upper[start:end, end:]
    made = made[:, torch.argsort(order)]
    clock.lap("columns")
    return made


def by_tool(tool, weight, inputs, others, format, more):
    """(seconds by the clock, of the processor, outputs on the other rows) of the crate."""
    with tempfile.TemporaryDirectory() as folder:
        path, rows, given, made = (Path(folder) / name for name in ("layer.onnx", "rows", "others", "made"))
        value = onnx.helper.make_tensor_value_info
        float32 = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], "layer")],
            "layer",
            [value("x", float32, ["n", weight.shape[1]])],
            [value("y", float32, ["n", weight.shape[0]])],
            [onnx.numpy_helper.from_array(weight.T.contiguous().numpy(), "weight")],
        )
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
        safetensors.torch.save_file({"x": inputs.contiguous()}, rows)
        safetensors.torch.save_file({"x": others.contiguous()}, given)
        command = [tool, path, "--mode", "weight-only", "--weights", format, *more, "--calibration", rows]
        command += ["--input", given, "--output", made, "--threads", 1, "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return json.loads(done.stdout)["seconds"]["quantize"], cpu, safetensors.torch.load_file(made)["y"]


def decibels(exact, made):
    return (10 * torch.log10(exact.double().square().sum() / (exact - made).double().square().sum())).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--tool", help="quantize_onnx")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weight, inputs, others = problem(arguments.size, arguments.rows)
    runs = []
    for _ in range(arguments.repeat):
        clock = Clock()
        made = gptq(weight, inputs, arguments.group, clock)
        runs.append(clock.parts)
    for part in runs[0]:
        wall, cpu = (min(run[part][i] for run in runs) for i in range(2))
        print(f"{part:9} {wall:7.2f} s by the clock, {cpu:7.2f} s of the processor")
    wall, cpu = (min(sum(times[i] for times in run.values()) for run in runs) for i in range(2))
    print(f"{'all':9} {wall:7.2f} s by the clock, {cpu:7.2f} s of the processor")
    exact = others @ weight.T
    reached, before = (decibels(exact, others @ values.T) for values in (made, plain(weight, arguments.group)))
    print(f"outputs on other rows: {reached:.2f} dB, plain rounding {before:.2f} dB")
    if arguments.tool:
        format = f"uint{BITS}:g{arguments.group}"
        for name, format, more in (("same algorithm", f"{format}:range", ["--sweeps", 0]), ("default", format, [])):
            found = [by_tool(arguments.tool, weight, inputs, others, format, more) for _ in range(arguments.repeat)]
            wall, cpu = (min(run[i] for run in found) for i in range(2))
            reached = decibels(exact, found[0][2])
            print(f"{Path(arguments.tool).name}, {name}: {wall:.2f} s by the clock, {cpu:.2f} s of the processor, {reached:.2f} dB")


if __name__ == "__main__":
    main()
