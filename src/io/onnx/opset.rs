//! Versions of the operators of `ai.onnx`.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};
use crate::io::onnx::format_error;
use crate::io::onnx::schema::OperatorSetIdProto;

/// Those that are spoken.
const SPOKEN: RangeInclusive<i64> = 7..=28;

/// Operators that have been what they are in opset 7 since an earlier one.
const OLDER: [(i64, &[&str]); 5] = [
    (
        1,
        &[
            "ArgMax",
            "ArgMin",
            "Constant",
            "Conv",
            "ConvTranspose",
            "DepthToSpace",
            "Flatten",
            "Gather",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Identity",
            "LogSoftmax",
            "MatMul",
            "MaxPool",
            "Not",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "Shape",
            "Slice",
            "Softmax",
            "Softplus",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        ],
    ),
    (2, &["Pad", "Split"]),
    (4, &["Concat"]),
    (5, &["Reshape"]),
    (
        6,
        &[
            "Abs",
            "Cast",
            "Ceil",
            "Clip",
            "Elu",
            "Exp",
            "Floor",
            "HardSigmoid",
            "InstanceNormalization",
            "LeakyRelu",
            "Log",
            "Max",
            "Mean",
            "Min",
            "Neg",
            "Reciprocal",
            "Relu",
            "Sigmoid",
            "Sqrt",
            "Sum",
            "Tanh",
            "Tile",
        ],
    ),
];

/// The opset of `ai.onnx` that a file uses; one before 7 counts as 7 where that changed none of the file's operators.
///
/// # Errors
/// [`Error::Format`] when the file says none or two, [`Error::Unsupported`] for one that is not spoken.
pub fn opset<'n>(imports: &[OperatorSetIdProto], mut operators: impl Iterator<Item = &'n str>, what: &str) -> Result<i64> {
    let own = imports.iter().filter(|import| matches!(import.domain.as_deref(), None | Some("" | "ai.onnx")));
    let mut versions = own.map(|import| import.version.unwrap_or(0));
    let version = versions.next().ok_or_else(|| format_error(what, "it doesn't say which opset of ai.onnx it uses"))?;
    if let Some(other) = versions.find(|&other| other != version) {
        return Err(format_error(what, format!("it uses opset {version} of ai.onnx, and opset {other}")));
    }
    if SPOKEN.contains(&version) {
        return Ok(version);
    }
    let known = |operator: &str| OLDER.iter().any(|(since, names)| *since <= version && names.contains(&operator));
    match (1..*SPOKEN.start()).contains(&version).then(|| operators.find(|operator| !known(operator))) {
        Some(None) => Ok(*SPOKEN.start()),
        other => {
            let of = other.flatten().map(|operator| format!(" with the operator {operator}")).unwrap_or_default();
            let way_out = format!("export the model with one of {} to {}", SPOKEN.start(), SPOKEN.end());
            Err(Error::Unsupported { what: format!("opset {version} of {what}{of}"), way_out })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(imports: &[(&str, Option<i64>)], operators: &[&str]) -> Result<i64> {
        let import = |&(domain, version): &(&str, _)| OperatorSetIdProto { domain: Some(domain.to_owned()), version };
        opset(&imports.iter().map(import).collect::<Vec<_>>(), operators.iter().copied(), "input")
    }

    #[test]
    fn one_of_those_that_are_spoken() {
        assert_eq!(with(&[("ai.onnx", Some(7))], &["Add"]).unwrap(), 7);
        assert_eq!(with(&[("", Some(28)), ("ai.onnx", Some(28)), ("ai.onnx.ml", Some(3))], &["Add"]).unwrap(), 28);
        for bad in [6, 29, 0, -1, i64::MAX] {
            let error = with(&[("", Some(bad))], &["Add"]).unwrap_err();
            assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("7 to 28"), "{error}");
        }
        for bad in [&[][..], &[("com.microsoft", Some(1))], &[("", Some(12)), ("ai.onnx", Some(13))]] {
            assert!(matches!(with(bad, &[]), Err(Error::Format { .. })));
        }
    }

    #[test]
    fn an_older_one_where_nothing_has_changed() {
        assert_eq!(with(&[("", Some(1))], &["Not", "Conv"]).unwrap(), 7);
        assert_eq!(with(&[("", Some(6))], &["Relu", "Concat"]).unwrap(), 7);
        let error = with(&[("", Some(5))], &["Conv", "Relu"]).unwrap_err();
        assert!(error.to_string().contains("opset 5 of input with the operator Relu"), "{error}");
    }
}
