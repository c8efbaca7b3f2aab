//! Rows of a table: each index adds the gradient of what it picked to its row.

use super::{Backward, Differentiable, Forward, Held, evaluate};
use crate::error::Result;
use crate::nn::{Embedding, Layer};
use crate::tensor::{Tensor, Value};
use crate::train::array::Array;

#[derive(Debug)]
pub struct LookUp {
    rows: usize,
    width: usize,
}

impl LookUp {
    pub fn new(table: &Embedding) -> Self {
        LookUp { rows: table.rows(), width: table.width() }
    }
}

impl Differentiable for LookUp {
    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let table = Tensor::new([self.rows, self.width], run.parameters[0].to_vec())?;
        evaluate(&Layer::from(Embedding::new(table)?), run.inputs)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let indices: Vec<i64> = match &run.inputs[0] {
            Some(Held::Other(Value::I64(indices))) => indices.as_slice().to_vec(),
            Some(Held::Other(Value::I32(indices))) => indices.as_slice().iter().map(|&index| index.into()).collect(),
            _ => unreachable!("the forward pass found indices"),
        };
        let mut by_table = vec![0.0f32; self.rows * self.width];
        for (index, gradient) in indices.into_iter().zip(run.gradient.data().chunks_exact(self.width.max(1))) {
            let row = if index < 0 { index + self.rows as i64 } else { index } as usize;
            by_table[row * self.width..][..self.width].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        run.by_parameter = vec![by_table];
        Ok(())
    }
}
