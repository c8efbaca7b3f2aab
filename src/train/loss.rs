//! Losses: the mean over a batch, in f64, and its gradient.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The rows of `[n, classes]`.
fn rows(logits: &Tensor) -> Result<(usize, usize)> {
    match *logits.dims() {
        [n, classes] if n > 0 && classes > 0 => Ok((n, classes)),
        ref other => Err(Error::shape("logits", "[n, classes], both at least 1", other)),
    }
}

/// `ln Σ e^(x / temperature)` of a row, and `e^(x / temperature) / Σ`.
fn log_softmax(row: &[f32], temperature: f64) -> (f64, Vec<f64>) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled = |x: f32| (f64::from(x) - f64::from(largest)) / temperature;
    let sum: f64 = row.iter().map(|&x| scaled(x).exp()).sum();
    let log = sum.ln() + f64::from(largest) / temperature;
    (log, row.iter().map(|&x| scaled(x).exp() / sum).collect())
}

/// `mean over rows of -Σ t[c] ln softmax(x)[c]` with `t = 1 - smoothing` for the label, plus `smoothing / classes` for every class;
/// its gradient is `(softmax(x) - t) / n`.
///
/// # Errors
/// [`Error::Shape`] unless the logits are `[n, classes]`, [`Error::Length`] for another number of labels, [`Error::Parameter`] for a
/// label that is no class, and a smoothing outside 0 to 1.
pub fn cross_entropy(logits: &Tensor, labels: &[usize], smoothing: f64) -> Result<(f64, Tensor)> {
    let (n, classes) = rows(logits)?;
    if labels.len() != n {
        return Err(Error::length("list of labels", n, labels.len()));
    }
    if let Some(label) = labels.iter().find(|label| **label >= classes) {
        return Err(Error::parameter("label", label, format!("must be one of the {classes} classes")));
    }
    if !(0.0..=1.0).contains(&smoothing) {
        return Err(Error::parameter("smoothing of labels", smoothing, "must be 0 to 1"));
    }
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(logits.len()));
    for (row, &label) in logits.as_slice().chunks_exact(classes).zip(labels) {
        let (log, shares) = log_softmax(row, 1.0);
        for (class, (&x, share)) in row.iter().zip(shares).enumerate() {
            let target = smoothing / classes as f64 + if class == label { 1.0 - smoothing } else { 0.0 };
            // A class that is masked out, with a logit of -∞, costs nothing where it is not wanted.
            if target > 0.0 {
                loss += target * (log - f64::from(x));
            }
            gradient.push(((share - target) / n as f64) as f32);
        }
    }
    Ok((loss / n as f64, Tensor::new(logits.dims(), gradient)?))
}

/// `mean (x - y)²` over all elements, and `2 (x - y) / elements`.
///
/// # Errors
/// [`Error::Shape`] when the two differ, [`Error::Empty`] without an element.
pub fn mean_squared_error(x: &Tensor, target: &Tensor) -> Result<(f64, Tensor)> {
    if x.dims() != target.dims() {
        return Err(Error::shape("target", format!("{:?}, that of the value", x.dims()), target.dims()));
    }
    if x.is_empty() {
        return Err(Error::Empty { what: "value to compare with a target".into(), way_out: "give at least one element" });
    }
    let count = x.len() as f64;
    let differences = x.as_slice().iter().zip(target.as_slice()).map(|(&x, &y)| f64::from(x) - f64::from(y));
    let loss = differences.clone().map(|d| d * d).sum::<f64>() / count;
    Ok((loss, Tensor::new(x.dims(), differences.map(|d| (2.0 * d / count) as f32).collect())?))
}

/// Distillation (Hinton et al. 2015): `T² · mean over rows of KL(softmax(teacher / T) ‖ softmax(student / T))`, and its gradient by the
/// student's logits, `T (softmax(student / T) - softmax(teacher / T)) / n`.
///
/// # Errors
/// [`Error::Shape`] unless both are `[n, classes]`, [`Error::Parameter`] for a temperature that is not finite and above zero.
pub fn distillation(student: &Tensor, teacher: &Tensor, temperature: f64) -> Result<(f64, Tensor)> {
    let (n, classes) = rows(student)?;
    if student.dims() != teacher.dims() {
        return Err(Error::shape("teacher's logits", format!("{:?}, as the student's", student.dims()), teacher.dims()));
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return Err(Error::parameter("temperature", temperature, "must be finite and above zero"));
    }
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(student.len()));
    for (student, teacher) in student.as_slice().chunks_exact(classes).zip(teacher.as_slice().chunks_exact(classes)) {
        let ((own, shares), (theirs, targets)) = (log_softmax(student, temperature), log_softmax(teacher, temperature));
        for (((&x, &y), share), target) in student.iter().zip(teacher).zip(shares).zip(targets) {
            let logs = f64::from(y) / temperature - theirs - (f64::from(x) / temperature - own);
            loss += if target > 0.0 { target * logs } else { 0.0 };
            gradient.push((temperature * (share - target) / n as f64) as f32);
        }
    }
    Ok((temperature * temperature * loss / n as f64, Tensor::new(student.dims(), gradient)?))
}
