//! A selection of ONNX's own tests of single operators (`tests/reference/onnx_node_fixtures.py`), each read from the bytes
//! of its file and run.

use std::collections::BTreeMap;

use crate::nodes::suite::{Case, Suite};
use lowprec::{Model, Value, onnx};

/// What is wrong with an output, or nothing: type, shape, integers and truth values are exact, floats within the test's own
/// tolerances.
fn difference(case: &Case, name: &str, got: &Value, expected: &Value) -> Option<String> {
    if got.dtype() != expected.dtype() || got.shape() != expected.shape() {
        let [got, expected] = [got, expected].map(|value| format!("{} {:?}", value.dtype(), value.shape()));
        return Some(format!("output {name} is {got}, not {expected}"));
    }
    if !got.dtype().is_float() {
        return (got.bytes() != expected.bytes()).then(|| format!("output {name} is {got:?}, not {expected:?}"));
    }
    let near = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= case.atol + case.rtol * b.abs();
    let [got, expected] = [got, expected].map(crate::nodes::suite::floats);
    let wrong = got.iter().zip(&expected).position(|pair| !near(pair))?;
    Some(format!("output {name}[{wrong}] is {}, not {}", got[wrong], expected[wrong]))
}

fn check(case: &Case, outputs: &[(String, Value)]) -> Option<String> {
    if outputs.len() != case.outputs.len() {
        return Some(format!("{} outputs, not {}", outputs.len(), case.outputs.len()));
    }
    outputs.iter().find_map(|(name, got)| match case.outputs.get(name) {
        Some(expected) => difference(case, name, got, expected),
        None => Some(format!("output {name} was not asked for")),
    })
}

fn run(case: &Case) -> Result<Option<String>, lowprec::Error> {
    let model: Model = onnx::from_bytes(&case.model)?;
    let inputs: Vec<(&str, &Value)> = case.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let problem = check(case, &model.run(&inputs)?);
    // Every node by itself, as nothing is fused where values are shown.
    Ok(problem.or(check(case, &model.run_with(&inputs, |_| Ok(()))?)))
}

#[test]
fn every_test_of_the_selection_passes() {
    let suite = Suite::load();
    assert_eq!(suite.cases.len(), 615);
    let problems: BTreeMap<&str, String> = suite
        .cases
        .iter()
        .filter_map(|(name, case)| match run(case) {
            Ok(problem) => problem.map(|problem| (name.as_str(), problem)),
            Err(error) => Some((name.as_str(), error.to_string())),
        })
        .collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_operator_has_two_tests_where_onnx_has() {
    let suite = Suite::load();
    assert_eq!(suite.operators.len(), 100);
    let one = ["Erf", "HardSwish", "MatMulInteger", "Mish", "QLinearConv", "Relu", "Sign"];
    for (operator, count) in &suite.operators {
        assert_eq!(*count == 1, one.contains(&operator.as_str()), "{operator}: {count}");
    }
}
