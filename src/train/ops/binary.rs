//! Functions of two elements, with numpy's broadcasting.

use std::borrow::Cow;

use super::{Backward, Differentiable, Forward, Held, Layout, evaluate, float};
use crate::error::Result;
use crate::nn::Layer;
use crate::nn::operator::Binary;
use crate::tensor::{Tensor, Value};
use crate::train::array::Array;

/// The functions that have derivatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Sum,
    Difference,
    Product,
    Quotient,
    Power,
    PRelu,
}

impl Form {
    pub fn of(function: Binary) -> Option<Form> {
        Some(match function {
            Binary::Add => Form::Sum,
            Binary::Sub => Form::Difference,
            Binary::Mul => Form::Product,
            Binary::Div => Form::Quotient,
            Binary::PRelu => Form::PRelu,
            _ => return None,
        })
    }

    /// The derivatives of `f(a, b)` by both, times `g`.
    fn derivatives(self, a: f32, b: f32, g: f32) -> [f32; 2] {
        match self {
            Form::Sum => [g, g],
            Form::Difference => [g, -g],
            Form::Product => [g * b, g * a],
            Form::Quotient => [g / b, -g * a / (b * b)],
            Form::Power => {
                let y = a.powf(b);
                // A power of 0 has no slope by an exponent above 0, though its logarithm is infinite.
                let by_exponent = if a == 0.0 && b >= 0.0 { 0.0 } else { y * a.ln() };
                [if b == 0.0 { 0.0 } else { g * b * a.powf(b - 1.0) }, g * by_exponent]
            }
            Form::PRelu if a < 0.0 => [g * b, g * a],
            Form::PRelu => [g, 0.0],
        }
    }
}

#[derive(Debug)]
pub struct Elementwise {
    layer: Layer,
    form: Form,
}

impl Elementwise {
    pub fn new(layer: &Layer, form: Form) -> Self {
        Elementwise { layer: layer.clone(), form }
    }
}

/// Calls `f`, for each element under `dims`, with its index and that of the operand's element that was repeated there.
pub fn each_repeated(dims: &[usize], operand: &[usize], mut f: impl FnMut(usize, usize)) {
    let lead = dims.len() - operand.len();
    let mut steps = vec![0; dims.len()];
    let mut step = 1;
    for axis in (0..operand.len()).rev() {
        if operand[axis] != 1 {
            steps[lead + axis] = step;
        }
        step *= operand[axis];
    }
    let (mut at, mut from) = (vec![0; dims.len()], 0);
    for index in 0..dims.iter().product() {
        f(index, from);
        for axis in (0..dims.len()).rev() {
            at[axis] += 1;
            from += steps[axis];
            if at[axis] < dims[axis] {
                break;
            }
            from -= steps[axis] * dims[axis];
            at[axis] = 0;
        }
    }
}

/// The float value of an input; of a power's exponent, also one of integers.
fn operand<'a>(inputs: &'a [Option<Held>], index: usize) -> Result<Cow<'a, Array>> {
    let floats = |dims: &[usize], values: Vec<f32>| Ok(Cow::Owned(Array::row_major(Tensor::new(dims, values)?)));
    match inputs.get(index) {
        Some(Some(Held::Other(Value::I64(x)))) => floats(x.dims(), x.as_slice().iter().map(|&x| x as f32).collect()),
        Some(Some(Held::Other(Value::I32(x)))) => floats(x.dims(), x.as_slice().iter().map(|&x| x as f32).collect()),
        _ => float(inputs, index).map(Cow::Borrowed),
    }
}

impl Differentiable for Elementwise {
    fn layout(&self) -> Layout {
        Layout::Alike
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let (a, b) = (float(run.inputs, 0)?, &*operand(run.inputs, 1)?);
        if self.form == Form::Sum && a.dims() == b.dims() {
            return Array::like(a, a.data().iter().zip(b.data()).map(|(a, b)| a + b).collect());
        }
        let y = evaluate(&self.layer, run.inputs)?;
        if a.dims() == b.dims() { Array::like(a, y.held().clone().into_vec()) } else { Ok(y) }
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (a, b, gradient) = (float(run.inputs, 0)?, &*operand(run.inputs, 1)?, run.gradient.data());
        if a.dims() == b.dims() {
            for (side, x) in [a, b].into_iter().enumerate().filter(|(side, _)| run.wanted[*side]) {
                let by_side = match self.form {
                    Form::Sum => gradient.to_vec(),
                    form => a.data().iter().zip(b.data()).zip(gradient).map(|((&a, &b), &g)| form.derivatives(a, b, g)[side]).collect(),
                };
                run.by_input[side] = Some(Array::like(x, by_side)?);
            }
            return Ok(());
        }
        let dims = run.gradient.dims();
        let mut places = [vec![0; gradient.len()], vec![0; gradient.len()]];
        for (places, x) in places.iter_mut().zip([a, b]) {
            each_repeated(&dims, &x.dims(), |index, from| places[index] = from);
        }
        let mut sums = [vec![0.0f32; a.data().len()], vec![0.0f32; b.data().len()]];
        for (index, &g) in gradient.iter().enumerate() {
            let (i, j) = (places[0][index], places[1][index]);
            let [by_a, by_b] = self.form.derivatives(a.data()[i], b.data()[j], g);
            sums[0][i] += by_a;
            sums[1][j] += by_b;
        }
        for (side, (x, sum)) in [a, b].into_iter().zip(sums).enumerate().filter(|(side, _)| run.wanted[*side]) {
            run.by_input[side] = Some(Array::row_major(Tensor::new(x.dims(), sum)?));
        }
        Ok(())
    }
}
