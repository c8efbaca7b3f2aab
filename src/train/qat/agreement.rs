//! What was trained beside the integers that it becomes.

use super::Qat;
use crate::error::Result;
use crate::nn::{Executor, Model, Node};
use crate::tensor::{Tensor, Value};
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
    pub largest: u8,
    /// The value where that was.
    pub worst: Option<String>,
    /// Values in codes that could not be compared: training has no value there, one of another shape, or one between the steps.
    pub unmatched: Vec<String>,
}

impl Qat {
    /// Runs named inputs through both, the network as it is trained and the model of [`Qat::finish`], and compares every code. Sums in
    /// float decide a tie here and there otherwise than integers; a code apart in a layer may move some behind it.
    ///
    /// # Errors
    /// Those of [`Qat::finish`] and of [`Trainable::run`].
    pub fn agreement(&mut self, inputs: &[(&str, &Value)]) -> Result<Agreement> {
        let (integers, calibration) = (self.finish()?, self.calibration()?);
        let tape = self.run(inputs, Mode::Evaluate)?;
        let trained = |name: &str| tape.value(self.model(), name).ok();
        let mut found = Agreement::default();
        Executor::new(&integers).run_with(inputs, |tap| {
            let (Some(node), Some(codes)) = (tap.node, tap.value.get::<u8>()) else { return Ok(()) };
            let edge = node.outputs().iter().copied().find(|&edge| integers.edge_name(edge) == tap.edge);
            let grid = edge.and_then(|edge| integers.grid(edge));
            let source = source(&integers, node, tap.edge, &trained).filter(|(_, value)| value.dims() == codes.dims());
            let (Some(grid), Some((name, value))) = (grid, source) else {
                // Codes on their way to fewer bits have no grid of their own; those that they become are compared.
                let passes = grid.is_none() && trained(tap.edge).is_none();
                found.unmatched.extend((!passes).then(|| tap.edge.to_owned()));
                return Ok(());
            };
            // Of a mean, training has what a table behind it makes of the codes: fewer bits.
            let translated = integers.nodes().iter().filter(|reader| edge.is_some_and(|edge| reader.reads().any(|read| read == edge)));
            let mut written = translated.flat_map(|reader| reader.outputs());
            let (lo, hi) = match calibration.get(name) {
                Some(params) if written.any(|&edge| trained(integers.edge_name(edge)).is_none()) => {
                    (params.qmin() as u8, params.qmax() as u8)
                }
                _ => (0, 255),
            };
            let mut between = false;
            for (&code, &value) in codes.as_slice().iter().zip(value.as_slice()) {
                let own = grid.quantize(value);
                between |= name == tap.edge && (grid.dequantize(own) - value).abs() > 1e-3 * grid.scale();
                let distance = code.clamp(lo, hi).abs_diff(own);
                found.apart += usize::from(distance > 0);
                if distance > found.largest {
                    (found.largest, found.worst) = (distance, Some(tap.edge.to_owned()));
                }
            }
            found.codes += codes.len();
            found.unmatched.extend(between.then(|| tap.edge.to_owned()));
            Ok(())
        })?;
        Ok(found)
    }
}

/// What was trained where the integer model has the edge: the value of its name, or, of codes that stand between two such values (of an
/// input, of a clamp, on another grid), that which they are made of.
fn source<'m>(integers: &'m Model, node: &'m Node, edge: &'m str, trained: &dyn Fn(&str) -> Option<Tensor>) -> Option<(&'m str, Tensor)> {
    let (mut node, mut name) = (Some(node), edge);
    loop {
        if let Some(value) = trained(name) {
            return Some((name, value));
        }
        let from = node?.reads().next()?;
        name = integers.edge_name(from);
        node = integers.nodes().iter().find(|node| node.outputs().contains(&from));
    }
}
