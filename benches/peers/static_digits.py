"""What PyTorch's and ONNX Runtime's static quantization make of the digits networks.

Run from the repository root: python benches/peers/static_digits.py [--json] [NETWORK]...

Everyone calibrates on the same 100 images, rows 0..100 of the training set. Printed for each way to quantize, over
the 647 test images:
  dB     10 log10(sum y^2 / sum (y - q)^2) over all logits, y those of the float network and q the quantized one's
  right  images classified correctly
  flips  images classified otherwise than by the float network
and at the end, per network, the numbers to beat.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.numpy
import torch
from onnxruntime.quantization import CalibrationMethod, QuantType
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
from quantized_onnx_fixtures import CALIBRATION, decibels, digits, prepared, quantized, session
from refio import DATA
from train_digits import DigitsCnn
from train_static_networks import load

# PyTorch's name of a configuration. x86 is the default: activations in 7 bits (0..127), histograms with its search for
# the least squared error, weights per channel. onednn is the same with 8 bits.
TORCH = ("x86", "onednn")
# Calibrator and the options that differ from its default. Distribution is meant for 8-bit floats: it looks at the
# standard deviation alone.
CALIBRATORS = {
    "MinMax": (CalibrationMethod.MinMax, {}),
    "MinMax, moving average": (CalibrationMethod.MinMax, {"CalibMovingAverage": True}),
    "MinMax, symmetric": (CalibrationMethod.MinMax, {"ActivationSymmetric": True}),
    "Entropy": (CalibrationMethod.Entropy, {}),
    "Percentile 99.999": (CalibrationMethod.Percentile, {}),
    "Percentile 99.99": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
    "Percentile 99.9": (CalibrationMethod.Percentile, {"CalibPercentile": 99.9}),
    "Distribution": (CalibrationMethod.Distribution, {}),
}
ACTIVATIONS = {"u8": QuantType.QUInt8, "i8": QuantType.QInt8}


class Called(nn.Module):
    """A network whose arguments are the image alone, as tracing needs it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)


def torch_network(name):
    if name != "cnn":
        return load(name)
    model = DigitsCnn()
    stored = safetensors.numpy.load_file(DATA / "digits_cnn.safetensors")
    model.load_state_dict({key: torch.tensor(value) for key, value in stored.items()})
    return Called(model.eval())


def by_torch(name, backend, batch, images):
    """Logits of the network quantized by FX graph mode, calibrated in batches of the given size."""
    torch.backends.quantized.engine = backend
    example = (torch.from_numpy(images[:1]),)
    model = prepare_fx(torch_network(name), get_default_qconfig_mapping(backend), example)
    with torch.no_grad():
        for part in torch.from_numpy(digits("train")[:CALIBRATION]).split(batch):
            model(part)
        return convert_fx(model)(torch.from_numpy(images)).numpy()


def by_onnxruntime(model, calibrator, per_channel, activations, images):
    """Logits of a prepared model quantized as QDQ."""
    method, options = CALIBRATORS[calibrator]
    # The histograms' calibrators print their settings.
    with contextlib.redirect_stdout(io.StringIO()):
        result = quantized(
            model,
            # A moving average needs steps.
            batch=10 if "CalibMovingAverage" in options else CALIBRATION,
            per_channel=per_channel,
            activation_type=ACTIVATIONS[activations],
            calibrate_method=method,
            extra_options=options,
        )
    return session(result).run(None, {"image": images})[0]


def measure(name, images, labels):
    """A row for every way to quantize the network."""
    model = prepared(name)
    (exact,) = session(model).run(None, {"image": images})
    assert decibels(exact, torch_network(name)(torch.from_numpy(images)).detach().numpy()) > 100

    def row(tool, way, logits):
        # Equal logits, which codes often are: the first counts.
        right, flips = (logits.argmax(1) == labels).sum(), (logits.argmax(1) != exact.argmax(1)).sum()
        db = None if logits is exact else round(float(decibels(exact, logits)), 2)
        return {"network": name, "tool": tool, "way": way, "db": db, "right": int(right), "flips": int(flips)}

    yield row("float", "", exact)
    for backend, batch in itertools.product(TORCH, (CALIBRATION, 10)):
        yield row("torch", f"{backend}, batches of {batch}", by_torch(name, backend, batch, images))
    for calibrator, per_channel, activations in itertools.product(CALIBRATORS, (True, False), ACTIVATIONS):
        way = f"{calibrator}, {'per channel' if per_channel else 'per tensor'}, {activations}"
        try:
            yield row("onnxruntime", way, by_onnxruntime(model, calibrator, per_channel, activations, images))
        except Exception as error:
            yield {"network": name, "tool": "onnxruntime", "way": way, "error": f"{type(error).__name__}: {error}"}


def to_beat(rows):
    """The best of PyTorch's default configuration, and of all that ONNX Runtime was asked for."""
    rows = [row for row in rows if "error" not in row]
    torch_default = [row for row in rows if row["way"].startswith("x86")]
    choices = {"torch": torch_default, "onnxruntime": [row for row in rows if row["tool"] == "onnxruntime"]}
    return {choice: max(rows, key=lambda row: row["db"]) for choice, rows in choices.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="cnn, residual, separable, squeeze; default all")
    parser.add_argument("--json", action="store_true", help="print the rows and the numbers to beat as JSON")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    images = digits("test")
    labels = safetensors.numpy.load_file(DATA / "digits.safetensors")["test.labels"]
    rows, best = [], {}
    for name in arguments.networks or ("cnn", "residual", "separable", "squeeze"):
        start = len(rows)
        for row in measure(name, images, labels):
            rows.append(row)
            if not arguments.json:
                db = row.get("db") or np.inf
                figures = row.get("error") or f"{db:6.2f} dB  {row['right']} right  {row['flips']} flips"
                print(f"{name:9} {row['tool']:11} {row['way']:39} {figures}", flush=True)
        best[name] = to_beat(rows[start:])
    if arguments.json:
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        print(json.dumps({"versions": versions, "rows": rows, "to_beat": best}, indent=1))
        return
    for name, choices in best.items():
        for choice, row in choices.items():
            print(f"to beat: {name:9} {row['db']:6.2f} dB, {choice} ({row['way']})")


if __name__ == "__main__":
    main()
