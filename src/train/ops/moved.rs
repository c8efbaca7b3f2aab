//! What only copies elements: Slice, Split, Gather and its kin, Expand, Tile, Pad, Where, and those that reorder. Which element went
//! where is found by moving the numbers of the elements themselves; a gradient goes back to where its element came from.

use std::ops::Range;

use super::{Backward, Differentiable, Forward, Held, evaluate, float};
use crate::error::Result;
use crate::nn::operator::Operator;
use crate::nn::{Layer, evaluate_within};
use crate::tensor::{Shape, Tensor, Value};
use crate::train::array::Array;

#[derive(Debug)]
pub struct Moved {
    layer: Layer,
    /// The same, with zero for a constant that it may write.
    of_numbers: Layer,
    /// The inputs whose elements are copied; others choose which.
    data: Range<usize>,
}

impl Moved {
    /// Of these inputs.
    pub fn new(layer: &Layer, data: Range<usize>) -> Self {
        let of_numbers = match layer {
            Layer::Operator(Operator::Pad(pad)) => pad.without_value().into(),
            layer => layer.clone(),
        };
        Moved { layer: layer.clone(), of_numbers, data }
    }

    /// Of each element of an output, the number of the element that it is, counted from 1 over all inputs that are copied; 0 for constants.
    fn origins(&self, inputs: &[Option<Held>], output: usize) -> Result<Tensor<i64>> {
        let mut first = 1;
        let numbered = |(index, input): (usize, &Option<Held>)| -> Result<Option<Value>> {
            Ok(match input {
                Some(Held::Float(array)) if self.data.contains(&index) => {
                    let numbers = (first..).take(array.data().len()).collect();
                    first += array.data().len() as i64;
                    Some(Value::from(Tensor::from_shape(Shape::new(array.dims())?, numbers)?))
                }
                // What a Pad writes is zero then, as it is without one.
                Some(Held::Float(_)) | None => None,
                Some(Held::Other(value)) => Some(value.clone()),
            })
        };
        let values = inputs.iter().enumerate().map(numbered).collect::<Result<Vec<_>>>()?;
        let values: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
        let outputs = evaluate_within(&self.of_numbers, &values, usize::MAX)?.expect("there is no limit");
        Ok(outputs[output].get::<i64>().expect("copies are of the type that was copied").clone())
    }
}

impl Differentiable for Moved {
    fn has_derivative(&self, input: usize) -> bool {
        self.data.contains(&input)
    }

    fn writes_several(&self) -> bool {
        true
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        evaluate(&self.layer, run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let origins = self.origins(run.inputs, run.at)?;
        let mut first = 1;
        for side in self.data.clone() {
            let x = float(run.inputs, side)?;
            first += x.data().len();
            if !run.wanted[side] {
                continue;
            }
            let mut by_input = vec![0.0; x.data().len()];
            for (&origin, g) in origins.as_slice().iter().zip(run.gradient.data()) {
                // What lies before wraps around to beyond the end, too.
                if let Some(sum) = by_input.get_mut((origin as usize).wrapping_sub(first - x.data().len())) {
                    *sum += g;
                }
            }
            run.by_input[side] = Some(Array::row_major(Tensor::new(x.dims(), by_input)?));
        }
        Ok(())
    }
}
