//! What was trained beside the integers that it becomes.

use super::Qat;
use crate::error::Result;
use crate::nn::{Model, Node};
use crate::num::U8Grid;
use crate::tensor::Tensor;
use crate::train::{Mode, Trainable};

/// How far the codes of the integer model are from those of the fake-quantized values, over all values that are codes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Agreement {
    /// Codes that were compared.
    pub codes: usize,
    /// Of these, how many differ.
    pub apart: usize,
    /// By how many steps of the grid at most.
    pub most: u8,
    /// The value where that was.
    pub worst: Option<String>,
    /// Values in codes that training has no value of that name for.
    pub unmatched: Vec<String>,
}

impl Qat {
    /// Runs `x` through both, the network as it is trained and the model of [`Qat::finish`], and compares every code. Sums in float
    /// decide a tie here and there otherwise than integers; a code apart in a layer may move some behind it.
    ///
    /// # Errors
    /// Those of [`Qat::finish`] and of a forward pass; [`Error::Unsupported`](crate::Error::Unsupported) for a model of several inputs.
    pub fn agreement(&mut self, x: &Tensor) -> Result<Agreement> {
        let (integers, calibration) = (self.finish()?, self.calibration()?);
        let tape = self.forward(x, Mode::Evaluate)?;
        let mut found = Agreement::default();
        integers.forward_with(x, |tap| {
            let Some(node) = tap.node else { return Ok(()) };
            let edge = node.outputs().iter().find(|&&edge| integers.edge_name(edge) == tap.edge);
            let Some((codes, grid)) = tap.value.get::<u8>().zip(edge.and_then(|&edge| integers.grid(edge))) else { return Ok(()) };
            let grid: U8Grid = grid;
            let Some((name, trained)) = source(&integers, node, tap.edge, &|name| tape.value(self.model(), name).ok()) else {
                found.unmatched.push(tap.edge.to_owned());
                return Ok(());
            };
            // A mean may write codes that a table behind it takes back into fewer bits.
            let (lo, hi) = calibration.get(name).map_or((0, 255), |params| (params.qmin() as u8, params.qmax() as u8));
            for (&code, &value) in codes.as_slice().iter().zip(trained.as_slice()) {
                let distance = code.clamp(lo, hi).abs_diff(grid.quantize(value));
                found.apart += usize::from(distance > 0);
                if distance > found.most {
                    (found.most, found.worst) = (distance, Some(tap.edge.to_owned()));
                }
            }
            found.codes += codes.len();
            Ok(())
        })?;
        Ok(found)
    }
}

/// What was trained where the integer model has the edge: the value of its name, or, of codes that stand between two such values (of an
/// input, of a clamp, on another grid), that which they are made of.
fn source<'m>(integers: &'m Model, node: &'m Node, edge: &'m str, trained: &dyn Fn(&str) -> Option<Tensor>) -> Option<(&'m str, Tensor)> {
    let (mut node, mut name) = (node, edge);
    loop {
        if let Some(value) = trained(name) {
            return Some((name, value));
        }
        let from = node.reads().next()?;
        name = integers.edge_name(from);
        match integers.nodes().iter().find(|node| node.outputs().contains(&from)) {
            Some(before) => node = before,
            // An input of the model.
            None => return trained(name).map(|value| (name, value)),
        }
    }
}
