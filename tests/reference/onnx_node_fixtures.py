"""Write a selection of ONNX's own tests of single operators, for tests that run without Python.

Run from the repository root: python tests/reference/onnx_node_fixtures.py

Writes tests/fixtures/onnx_nodes.safetensors: of each operator of `onnx_node_tests.py` the two smallest
tests, and of those below 3000 bytes up to ten. Tensors `<test>/model` (the bytes of the ONNX file),
`<test>/<i>/<input>` and `<test>/<o>/<output>`, where i is `i` and o is `o`; the metadata have, under the
test's name, `rtol atol` and under `operators` how many tests use each operator.
"""

import collections
import json
import warnings

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases
from onnx_node_tests import OPERATORS, Skip, operators, prepare
from refio import FIXTURES, ROOT, TENSOR_TYPES, load_tensors, store_tensors

LEAST, MOST = 2, 10
SMALL = 3000
# The file must not grow beyond this.
BYTES = 1 << 20


def candidates():
    """(operators, size, name, case's tolerances, model, inputs, outputs), those of one operator first, by size."""
    found = []
    for case in collect_testcases(None):
        used = operators(case.model)
        if not used <= OPERATORS:
            continue
        try:
            model, inputs, outputs = prepare(case)
        except Skip:
            continue
        model.graph.ClearField("value_info")
        model.ClearField("producer_name")
        raw = np.frombuffer(model.SerializeToString(deterministic=True), np.uint8)
        arrays = [*inputs.values(), *outputs.values()]
        size = raw.size + sum(array.size * TENSOR_TYPES[array.dtype.name][1] // 8 for array in arrays)
        found.append((used, size, case.name, (case.rtol, case.atol), raw, inputs, outputs))
    return sorted(found, key=lambda test: (len(test[0]), test[1], test[2]))


def main():
    with warnings.catch_warnings():
        # numpy's, about the infinities that the tests are made of.
        warnings.simplefilter("ignore")
        tests = candidates()
    counts, tensors, metadata = collections.Counter(), {}, {"onnx": onnx.__version__}
    for used, size, name, (rtol, atol), raw, inputs, outputs in tests:
        wanted = MOST if size < SMALL else LEAST
        if all(counts[operator] >= wanted for operator in used):
            continue
        counts.update(used)
        name = name.removeprefix("test_")
        tensors[f"{name}/model"] = raw
        tensors |= {f"{name}/i/{key}": array for key, array in inputs.items()}
        tensors |= {f"{name}/o/{key}": array for key, array in outputs.items()}
        metadata[name] = f"{rtol} {atol}"
    assert counts.keys() == OPERATORS, OPERATORS - counts.keys()
    metadata["operators"] = json.dumps(counts, sort_keys=True)
    path = FIXTURES / "onnx_nodes.safetensors"
    store_tensors(path, dict(sorted(tensors.items())), dict(sorted(metadata.items())))
    for name, array in load_tensors(path).items():
        assert array.tobytes() == np.asarray(tensors[name]).tobytes() and array.shape == tensors[name].shape, name
    size = path.stat().st_size
    assert size <= BYTES, size
    few = [operator for operator, count in sorted(counts.items()) if count < LEAST]
    print(f"{path.relative_to(ROOT)}: {size} bytes, {len(metadata) - 2} tests; one each of {' '.join(few)}")


if __name__ == "__main__":
    main()
