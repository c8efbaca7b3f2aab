"""Ranges and parameters that PyTorch's observers and ONNX Runtime's calibrators find.

Run from the repository root: python tests/reference/observer_fixtures.py

Writes tests/fixtures/observers.safetensors: for every distribution four batches `<case>.batches` [4, 1024],
and what each observer makes of them, in double precision where it is a number that the tests compare.
"""

import contextlib
import io
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import calibrate
from refio import FIXTURES, save
from torch.ao.quantization import observer as torch_observer

BATCHES, SIZE, CHANNELS = 4, 1024, 8
BITS = [8, 7, 4]
RATE = 0.1
PERCENT = 99.0

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def distributions():
    rng = np.random.RandomState(6)
    shape = (BATCHES, SIZE)
    gaussian = rng.standard_normal(shape)
    # Later batches reach further: histograms have to widen.
    growth = np.array([0.5, 1.0, 0.8, 2.0])[:, None]
    outliers = rng.standard_normal(shape)
    outliers[rng.uniform(size=shape) < 0.002] *= 20
    gates = rng.standard_normal(shape) * 3
    return {
        "gaussian": gaussian * growth,
        "laplace": rng.laplace(size=shape),
        "relu": np.maximum(rng.standard_normal(shape) * growth, 0),
        "outliers": outliers,
        "silu": gates / (1 + np.exp(-gates)),
        "lognormal": rng.lognormal(size=shape),
        "negative": -np.abs(rng.standard_normal(shape)) - 0.25,
    }


def torch_ranges(batches):
    """What the observers of ranges hold after the batches: smallest and largest values."""
    channels = batches.reshape(BATCHES, CHANNELS, -1)
    found = {}
    for name, made, data in [
        ("minmax", torch_observer.MinMaxObserver(), batches),
        ("minmax_channel", torch_observer.PerChannelMinMaxObserver(ch_axis=0), channels),
        ("average", torch_observer.MovingAverageMinMaxObserver(averaging_constant=RATE), batches),
        ("average_channel", torch_observer.MovingAveragePerChannelMinMaxObserver(averaging_constant=RATE, ch_axis=0), channels),
    ]:
        for batch in data:
            made(torch.from_numpy(batch))
        found[f"torch.{name}"] = torch.stack([made.min_val.reshape(-1), made.max_val.reshape(-1)], 1).numpy()
    return found


def torch_histogram(batches):
    """Scale and zero point of HistogramObserver, [bits, (affine, symmetric), (scale, zero point)]."""
    rows = []
    for bits in BITS:
        row = []
        for scheme, dtype, low, high in [
            (torch.per_tensor_affine, torch.quint8, 0, 2**bits - 1),
            (torch.per_tensor_symmetric, torch.qint8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        ]:
            made = torch_observer.HistogramObserver(dtype=dtype, qscheme=scheme, quant_min=low, quant_max=high)
            for batch in batches:
                made(torch.from_numpy(batch))
            scale, zero_point = made.calculate_qparams()
            row.append([scale.item(), zero_point.item()])
        rows.append(row)
    return np.array(rows, np.float64)


def ort_minmax(batches, path, **options):
    """The range of the calibrator for min and max, fed batch by batch."""
    calibrator = calibrate.create_calibrator(path, augmented_model_path=path + ".augmented", extra_options=options)
    for batch in batches:
        readers = iter([{"x": batch}])
        # A reader of one batch: in one call the calibrator's moving average would be the plain mean.
        calibrator.collect_data(type("One", (), {"get_next": lambda self, readers=readers: next(readers, None)})())
    low, high = calibrator.calibrate_tensors_range["x"].range_value
    return np.array([low, high], np.float64).reshape(2)


def ort_histogram(batches, method, symmetric, bins=2048, levels=128):
    collector = calibrate.HistogramCollector(method, symmetric, bins, levels, PERCENT, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        for batch in batches:
            collector.collect({"x": batch})
        low, high = collector.compute_collection_result()["x"][:2]
    edges = collector.histogram_dict["x"][1]
    return np.array([low, high, edges[1] - edges[0]], np.float64)


def model(path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE]) for name in "xy")
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "zero"], ["y"])], "one", [x], [y], [zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main():
    import tempfile

    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/one.onnx"
        model(path)
        for case, values in distributions().items():
            batches = values.astype(np.float32)
            found = {
                "batches": batches,
                **torch_ranges(batches),
                "torch.histogram": torch_histogram(batches),
                "ort.minmax": ort_minmax(batches, path),
                "ort.average": ort_minmax(batches, path, moving_average=True, averaging_constant=RATE),
                "ort.percentile": ort_histogram(batches, "percentile", False),
                "ort.entropy": ort_histogram(batches, "entropy", False),
                # As by default: as many bins as levels, and so one candidate.
                "ort.entropy_default": ort_histogram(batches[:1], "entropy", False, bins=128),
            }
            tensors.update({f"{case}.{name}": value for name, value in found.items()})
    save(
        FIXTURES / "observers.safetensors",
        tensors,
        {"bits": BITS, "channels": CHANNELS, "rate": RATE, "percent": PERCENT, "cases": sorted(distributions())},
    )


if __name__ == "__main__":
    main()
