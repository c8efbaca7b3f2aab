"""What quantization costs the networks of `tests/reference/train_accuracy_networks.py`: by others, and by the crate.

Run from the repository root, after that script:
  python benches/peers/accuracy.py [--data DIR] [--json FILE] [--tool target/release/examples/quantize_onnx] [--with ARGUMENTS]
                                   [--ways PATTERN] [--ours CASE=OUT.safetensors]... [--only-ours] [CASE]...

Cases, each a network and what is asked of its quantization; shell patterns choose among them:
  weights:BITS:GROUP      weights alone of the transformer's linear layers, 4, 3 and 2 bits, groups of 32, 64 and 128
  dynamic:NETWORK         8 bits, activations quantized as they come: transformer and lstm
  static:transformer      8 bits, ranges from the calibration samples
  w4a8:NETWORK            weights in 4 bits, activations in 8, static: cnn, residual, separable
  equalized:NETWORK       8 bits static of separable and rescaled, separable_relu and rescaled_relu: channels as they were and rescaled

Everyone calibrates on NAME_calibration.safetensors. Printed for each way to quantize, over NAME_test.safetensors, against ONNX
Runtime's float logits:
  dB     10 log10(sum y^2 / sum (y - q)^2) over all logits
  loss   mean cross entropy over that of the float network, in nats, and its standard error
  KL     mean divergence of the predictions from the float network's, in nats
  flips  predictions of another class than the float network's
  bits   of a quantized weight, scales and zero points counted as the tool stores them
and at the end of each case the crate's best, of weights alone that of ways of no more bits than the others' best has, beside that, and the
distance from what is aimed at.

With --tool the crate is measured too, with the arguments of OURS (of those that --ways matches); --with adds arguments to all, and CASE=FILE takes logits that
something else wrote. A way that fails is a row with its error. --json writes all of it.
"""

import argparse
import contextlib
import fnmatch
import io
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
import torch
import torchao

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
import accuracy_rivals as rivals
from quantized_onnx_fixtures import decibels
from train_accuracy_networks import FOLDER

GROUPS = (32, 64, 128)
# In 4 bits, what the crate makes of the bits that the best of the others takes for groups of that length (6.00, 5.00 and 4.07): 4.88, 4.88
# and 4.06.
AS_LARGE = {32: "shift4:g8:log3", 64: "shift4:g8:log3", 128: "shift4:g128:log3"}
# Decibels above the best of the others.
MARGINS = {4: 4.0, 3: 4.0, 2: 3.0}
EQUALIZED = ("separable", "rescaled", "separable_relu", "rescaled_relu")


class Network:
    """A float network, its samples and its logits."""

    def __init__(self, name, folder):
        self.name, self.folder, self.path = name, folder, folder / f"{name}.onnx"
        if not self.path.exists():
            sys.exit(f"{self.path} is missing: python tests/reference/train_accuracy_networks.py --out {folder} {name}")
        self.calibration = safetensors.numpy.load_file(folder / f"{name}_calibration.safetensors")
        self.tests = safetensors.numpy.load_file(folder / f"{name}_test.safetensors")
        self.labels = self.tests.pop("labels").reshape(-1)
        self.exact = rivals.by_onnxruntime(onnx.load(self.path), self.tests)
        self.logs = log_softmax(self.exact)

    def losses(self, logs):
        """Cross entropy of every prediction."""
        return -logs[np.arange(len(self.labels)), self.labels]

    def measured(self, logits):
        logs = log_softmax(logits)
        above = self.losses(logs) - self.losses(self.logs)
        return {
            "db": float(decibels(self.exact, logits)) if not np.array_equal(self.exact, logits) else None,
            "loss": float(above.mean()),
            "loss_error": float(above.std() / np.sqrt(len(above))),
            "kl": float((np.exp(self.logs) * (self.logs - logs)).sum(1).mean()),
            "flips": int((logs.argmax(1) != self.logs.argmax(1)).sum()),
        }


def log_softmax(logits):
    """By row, in double precision."""
    logits = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def weights(bits, group):
    """The crate's ways: to round, to fit to the calibration samples, and formats of other levels of as many bits."""
    fitted = ["--calibration", "{calibration}"]
    # There is no shift2.
    names = ("int", "uint", "kmeans", "shift")[: 4 if bits > 2 else 3]
    formats = [f"{name}{bits}:g{group}" for name in names]
    base = {name: ["--mode", "weight-only", "--kinds", "linear", "--weights", name] for name in formats}
    ways = {f"{name} rounded": base[name] for name in formats[:2]} | {f"{name} fitted": base[name] + fitted for name in formats}
    # The format that is nearest of those, and the one of as many bytes as the others take, with all that there is.
    best = formats[-1:] + ([AS_LARGE[group]] if bits == 4 else [])
    for name in best:
        ways[f"{name} best effort"] = ["--mode", "weight-only", "--kinds", "linear", "--weights", name, *fitted, "--effort", "best"]
    return ways


DYNAMIC = ["--mode", "dynamic"]
# 8 bits on both sides, a scale for each so many of either.
BY_GROUP = {f"by groups of {size}": ["--mode", "weight-only", "--weights", f"int8:g{size}", "--activations", "int8-groups"] for size in (32, 16)}
STATIC = ["--mode", "static", "--calibration", "{calibration}"]
# Kind of case: the crate's ways, each the arguments of quantize_onnx.
OURS = {
    "dynamic": lambda: {"dynamic": DYNAMIC, "dynamic, best effort": [*DYNAMIC, "--effort", "best", "--calibration", "{calibration}"]},
    "static": lambda: {
        "static": STATIC,
        "static, linear alone": [*STATIC, "--kinds", "linear"],
        "static, best effort": [*STATIC, "--effort", "best"],
    },
    "w4a8": lambda: {
        "static, 4 bits": [*STATIC, "--weight-bits", "4"],
        "static, 4 bits, best effort": [*STATIC, "--weight-bits", "4", "--effort", "best"],
    },
    "equalized": lambda: {
        "static": STATIC,
        "static, mse": [*STATIC, "--observer", "mse"],
        "static, best effort": [*STATIC, "--effort", "best"],
        "static, weights per tensor": [*STATIC, "--weights-per", "tensor"],
        "static, weights per tensor, best effort": [*STATIC, "--weights-per", "tensor", "--effort", "best"],
    },
    "weights": weights,
}


def cases():
    """{name: (network, what others do, what the crate does)}"""
    found = {}
    for bits in (4, 3, 2):
        for group in GROUPS:
            theirs = lambda network, bits=bits, group=group: rivals.weight_only(network, bits, group)
            found[f"weights:{bits}:{group}"] = ("transformer", theirs, weights(bits, group))
    for name in ("transformer", "lstm"):
        ours = OURS["dynamic"]()
        if name == "transformer":
            ours |= BY_GROUP
            ours |= {f"{way}, best effort": [*how, "--effort", "best", "--calibration", "{calibration}"] for way, how in BY_GROUP.items()}
        found[f"dynamic:{name}"] = (name, rivals.dynamic, ours)
    found["static:transformer"] = ("transformer", rivals.static, OURS["static"]())
    for name in ("cnn", "residual", "separable"):
        found[f"w4a8:{name}"] = (name, rivals.w4a8, OURS["w4a8"]())
    for name in EQUALIZED:
        found[f"equalized:{name}"] = (name, rivals.images, OURS["equalized"]())
    return found


def by_tool(tool, network, arguments):
    """(logits, bits of a weight of the linear layers where they alone were quantized) by quantize_onnx on one thread."""
    with tempfile.TemporaryDirectory() as directory:
        given, made = (Path(directory) / name for name in ("in.safetensors", "out.safetensors"))
        safetensors.numpy.save_file(network.tests, given)
        calibration = network.folder / f"{network.name}_calibration.safetensors"
        arguments = [str(calibration) if part == "{calibration}" else part for part in arguments]
        command = [tool, network.path, *arguments, "--input", given, "--output", made, "--threads", 1, "--json"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[0])
        size = json.loads(done.stdout)["bytes"]
        bits = None
        if "weight-only" in arguments:
            count = sum(layer.weight.numel() for layer in rivals.linears(rivals.load(network.name, network.folder)))
            bits = 8 * (size["quantized"] - size["float"] + 4 * count) / count
        return safetensors.numpy.load_file(made)["logits"], bits


def measure(case, network, theirs, ours, arguments):
    """A row for every way."""

    def row(tool, way, run):
        start, found = time.time(), {"case": case, "tool": tool, "way": way}
        try:
            # Some tools print their settings.
            with contextlib.redirect_stdout(io.StringIO()):
                logits, bits = run()
            found |= network.measured(logits) | {"bits": bits}
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        return found | {"seconds": round(time.time() - start, 1)}

    if not arguments.only_ours:
        for tool, way, run, bits in theirs(network):
            yield row(tool, way, lambda run=run, bits=bits: (run(), bits))
    if arguments.tool:
        for way, options in ours.items():
            if not fnmatch.fnmatch(way, arguments.ways):
                continue
            yield row("lowprec", way, lambda options=options: by_tool(arguments.tool, network, [*options, *arguments.added.split()]))
    for given, path in (entry.split("=", 1) for entry in arguments.ours):
        if given == case:
            yield row("lowprec", Path(path).name, lambda path=path: (safetensors.numpy.load_file(path)["logits"], None))


def verdicts(case, rows, before):
    """What is aimed at: (text, holds) of each line. `before` are the rows of the cases so far."""
    rows = [row for row in rows if "error" not in row]
    theirs, ours = ([row for row in rows if (row["tool"] == "lowprec") == own] for own in (False, True))
    if case.startswith("weights") and theirs:
        # At equal bytes.
        most = max(theirs, key=lambda row: row["db"])["bits"]
        if ours and not any(row["bits"] is None or row["bits"] <= most for row in ours):
            yield f"none of the crate's ways has at most the {most:.2f} bits of theirs", False
        ours = [row for row in ours if row["bits"] is None or row["bits"] <= most]
    if not ours or not theirs:
        return
    # The loss is that of the nearest outputs: of those far away it may be small by chance.
    best, own = ({"db": max(part, key=lambda row: row["db"]), "kl": min(part, key=lambda row: row["kl"])} for part in (theirs, ours))
    best["loss"], own["loss"] = best["db"], own["db"]

    def above(margin):
        gained = own["db"]["db"] - best["db"]["db"]
        names = f"{own['db']['way']} {own['db']['db']:.2f} against {best['db']['tool']} {best['db']['way']} {best['db']['db']:.2f}"
        return f"{gained:+.2f} dB of {margin:+.0f}: {names}", gained >= margin

    def share(key, part):
        ratio = own[key][key] / best[key][key]
        names = f"{own[key]['way']} {own[key][key]:.5f} against {best[key]['tool']} {best[key]['way']} {best[key][key]:.5f}"
        return f"{key} {ratio:.2f} of theirs, {part:.2f} allowed: {names}", own[key][key] <= part * best[key][key]

    match case.split(":"):
        case ["weights", bits, _]:
            yield above(MARGINS[int(bits)])
            if bits == "4":
                yield share("loss", 1 / 3)
                # Not asked for; but of the loss of good formats chance decides more.
                yield share("kl", 1 / 3)
        case ["dynamic", name]:
            yield above({"transformer": 2.0, "lstm": 3.0}[name])
        case ["static", _]:
            yield f"{own['db']['db']:.2f} dB of 25: {own['db']['way']}", own["db"]["db"] >= 25
        case ["w4a8", _]:
            yield share("kl", 1 / 5)
        case ["equalized", name] if name.startswith("rescaled"):
            original = f"equalized:{name.replace('rescaled', 'separable')}"
            reached = {row["way"]: row["db"] for row in before if row["case"] == original and row["tool"] == "lowprec" and "db" in row}
            for row in ours:
                if row["way"] in reached:
                    lost = reached[row["way"]] - row["db"]
                    yield f"{row['way']}: {lost:.2f} dB below the network before rescaling, 0.1 allowed", lost <= 0.1


def show(row):
    if "error" in row:
        figures = row["error"]
    else:
        bits = f"  {row['bits']:5.2f} bits" if row["bits"] else ""
        db = np.inf if row["db"] is None else row["db"]
        figures = f"{db:6.2f} dB  loss {row['loss']:+.5f}±{row['loss_error']:.5f}  KL {row['kl']:.6f}  {row['flips']:5} flips{bits}"
    print(f"{row['case']:23} {row['tool']:11} {row['way']:42} {figures}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tool", help="quantize_onnx")
    parser.add_argument("--with", dest="added", default="", help="arguments for all runs of the tool, in one text")
    parser.add_argument("--ways", default="*", help="of the crate's ways, those that match")
    parser.add_argument("--ours", action="append", default=[], metavar="CASE=FILE", help="logits of the crate's")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=["*"])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    rows, lines, networks = [], [], {}
    for case, (name, theirs, ours) in cases().items():
        if not any(fnmatch.fnmatch(case, pattern) for pattern in arguments.cases):
            continue
        network = networks.setdefault(name, None) or Network(name, arguments.data)
        networks[name] = network
        before = list(rows)
        for row in measure(case, network, theirs, ours, arguments):
            rows.append(row)
            show(row)
        for text, holds in verdicts(case, rows[len(before) :], before):
            lines.append({"case": case, "line": text, "holds": bool(holds)})
            print(f"{case:23} {'holds' if holds else 'SHORT'}  {text}", flush=True)
    if arguments.json:
        versions = {"torch": torch.__version__, "torchao": torchao.__version__, "onnxruntime": onnxruntime.__version__}
        losses = {name: float(network.losses(network.logs).mean()) for name, network in networks.items()}
        arguments.json.write_text(json.dumps({"versions": versions, "float_loss": losses, "rows": rows, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
