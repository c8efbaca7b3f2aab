"""ONNX's own tests of single operators, run through the tool `quantize_onnx`.

    python onnx_node_tests.py [--only OPERATOR]... [--match TEXT] [--keep DIR] [--jobs N] [--tool PATH]

The tests are those of the installed package `onnx` whose graphs use the operators below and no others.
A test passes when every output has the expected type and shape, integers and truth values are equal, and
floats are within the test's own tolerances. Tensors that safetensors can't carry go another way: inputs
become initializers, outputs get a Cast, and so do the expected values. What can't be carried at all is
skipped, with the reason. The exit status is 1 when a test failed.
"""

import argparse
import collections
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from refio import ROOT, TENSOR_TYPES, load_tensors, store_tensors

OPERATORS = set(
    """
    Conv ConvTranspose Gemm MatMul BatchNormalization LayerNormalization GroupNormalization InstanceNormalization
    Relu LeakyRelu PRelu Clip Sigmoid Tanh HardSigmoid HardSwish Elu Erf Gelu Softmax LogSoftmax Softplus Mish
    MaxPool AveragePool GlobalAveragePool GlobalMaxPool
    Add Sub Mul Div Pow Mod Neg Abs Sqrt Exp Log Reciprocal Floor Ceil Round Sign Min Max Sum Mean
    Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not Where
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare ArgMax ArgMin
    Concat Split Slice Gather GatherElements Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Pad Resize
    DepthToSpace Cast Shape Range ConstantOfShape Constant Identity Dropout LSTM GRU
    QuantizeLinear DequantizeLinear DynamicQuantizeLinear ConvInteger MatMulInteger QLinearConv QLinearMatMul
    """.split()
)
# What the standard uses besides where it writes some of them out.
BESIDES = {"CastLike", "Size"}
# Their expected values are what numpy's random numbers give.
RANDOM = {
    "test_training_dropout",
    "test_training_dropout_mask",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
}
SECONDS = 60


class Skip(Exception):
    """Why a test can't be run."""


def graphs(graph):
    """The graph and all those in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
                yield from graphs(inner)


def operators(model):
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    return {node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}" for node in nodes}


def subject(case):
    """The operator that a test is about. Functions written out as graphs are rows of their own."""
    used = operators(case.model)
    if len(used) == 1:
        return used.pop()
    name = case.name.removeprefix("test_").replace("_", "").lower()
    named = [schema.name for schema in onnx.defs.get_all_schemas() if name.startswith(schema.name.lower())]
    return max(named, key=len, default="other") + (", written out" if "expanded" in case.name else "")


def carried(array):
    """Whether a safetensors file can hold the array."""
    name = array.dtype.name
    return name in TENSOR_TYPES and array.size * TENSOR_TYPES[name][1] % 8 == 0


def as_array(value):
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if value is None or isinstance(value, list | dict):
        raise Skip("a sequence or an optional, no tensor")
    value = np.asarray(value)
    if value.dtype.kind in "OUSc" or value.dtype.name.startswith("StringDType"):
        raise Skip(f"a tensor of {'complex numbers' if value.dtype.kind == 'c' else 'strings'}")
    return value


def casts_to(array):
    """A type that holds all of the array's values and that files carry."""
    name = array.dtype.name
    integers = {"int": TensorProto.INT8, "uint": TensorProto.UINT8}
    return integers.get(name.rstrip("0123456789"), TensorProto.FLOAT)


def prepare(case):
    """The model, inputs and expected outputs of a test, as far as files carry them."""
    if case.name in RANDOM:
        raise Skip("random numbers")
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    (given, expected), *more = case.data_sets
    assert not more, "several data sets"
    inputs, outputs = {}, {}
    for info, value in zip(list(graph.input), given, strict=True):
        array = as_array(value)
        if carried(array):
            inputs[info.name] = array
        else:
            graph.input.remove(info)
            graph.initializer.append(numpy_helper.from_array(array, info.name))
    for info, value in zip(graph.output, expected, strict=True):
        array = as_array(value)
        if not carried(array):
            cast = casts_to(array)
            plain = f"{info.name}_cast"
            graph.node.append(helper.make_node("Cast", [info.name], [plain], to=cast))
            array = array.astype(helper.tensor_dtype_to_np_dtype(cast))
            info.CopyFrom(helper.make_tensor_value_info(plain, cast, array.shape))
        outputs[info.name] = array
    return model, inputs, outputs


def difference(name, got, expected, rtol, atol):
    """What is wrong with an output, or nothing."""
    if got is None:
        return f"output {name} is missing"
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"output {name} is {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}"
    if got.dtype.kind in "iub":
        wrong = np.flatnonzero((got != expected).reshape(-1))
    else:
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        wrong = np.flatnonzero(~np.isclose(got, expected, rtol, atol, equal_nan=True).reshape(-1))
    if len(wrong):
        at = wrong[0]
        values = f"[{at}] is {got.reshape(-1)[at]}, not {expected.reshape(-1)[at]}"
        return f"output {name}: {len(wrong)} of {got.size} differ, {values}"
    return None


def run(case, tool, directory):
    """The first line of a failure, or nothing."""
    model, inputs, outputs = prepare(case)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: directory / f"{name}.safetensors" for name in ("input", "expected", "output")}
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    store_tensors(paths["input"], inputs)
    store_tensors(paths["expected"], outputs)
    paths["output"].unlink(missing_ok=True)
    command = [tool, directory / "model.onnx", "--mode", "float", "--threads", "1"]
    command += ["--input", paths["input"], "--output", paths["output"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"status {done.returncode}: {lines[-1] if lines else 'silent'}"
    got = load_tensors(paths["output"])
    problems = (difference(name, got.get(name), array, case.rtol, case.atol) for name, array in outputs.items())
    return next(filter(None, problems), None)


def main():
    parser = argparse.ArgumentParser(description="ONNX's own node tests, through quantize_onnx.")
    parser.add_argument("--only", action="append", metavar="OPERATOR", help="tests that use this operator (repeatable)")
    parser.add_argument("--match", default="", help="tests with this in their name")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave models, inputs and outputs there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--tool", type=Path, default=ROOT / "target" / "release" / "examples" / "quantize_onnx")
    options = parser.parse_args()
    if not options.tool.exists():
        parser.error(f"{options.tool} is not there: cargo build --release --example quantize_onnx")
    with warnings.catch_warnings():
        # numpy's, about the infinities that the tests are made of.
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if operators(case.model) <= (OPERATORS | BESIDES)]
    if options.only:
        cases = [case for case in cases if set(options.only) & operators(case.model)]
    cases = [case for case in cases if options.match in case.name]

    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        place = options.keep or Path(temporary)
        futures = {case.name: pool.submit(run, case, options.tool, place / case.name) for case in cases}
        results, skips, failures = collections.defaultdict(collections.Counter), collections.Counter(), []
        for case in cases:
            row = results[subject(case)]
            try:
                problem = futures[case.name].result()
            except Skip as reason:
                row["skipped"] += 1
                skips[str(reason)] += 1
            else:
                row["failed" if problem else "passed"] += 1
                if problem:
                    failures.append((case.name, problem))
    total = sum(results.values(), collections.Counter())
    width = max(map(len, results), default=8)
    print(f"onnx {onnx.__version__}\n\n{'operator':{width}} passed failed skipped")
    for name, row in [*sorted(results.items()), ("all", total)]:
        print(f"{name:{width}} {row['passed']:6} {row['failed']:6} {row['skipped']:7}")
    reasons = [f"{count} for {reason}" for reason, count in skips.most_common()]
    for title, lines in [("skipped", reasons), ("failed", [": ".join(failure) for failure in failures])]:
        if lines:
            print(f"\n{title}:", *lines, sep="\n  ")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
