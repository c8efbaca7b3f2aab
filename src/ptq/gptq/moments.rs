//! The second moments of a layer's inputs, over samples that run through a model.

use super::Hessian;
use super::patches::patches;
use crate::error::Result;
use crate::nn::{Layer, Model, Node};
use crate::ptq::statistics;
use crate::tensor::{Tensor, Value};

/// The weights of a layer of products; `None` for another.
pub(in crate::ptq) fn weight_of(layer: &Layer) -> Option<&Tensor> {
    match layer {
        Layer::Linear(linear) => Some(linear.weight()),
        Layer::Conv2d(conv) => Some(conv.weight()),
        _ => None,
    }
}

/// Hessians of the parts of a layer by the inputs that it reads, one or none a batch: of three in four samples, and of those held out.
pub(in crate::ptq) fn moments(
    layer: &Layer,
    threads: usize,
    inputs: impl Iterator<Item = Result<Option<Tensor>>>,
) -> Result<[Vec<Hessian>; 2]> {
    let (width, parts) = match layer {
        Layer::Conv2d(conv) => (conv.weight().dims()[1..].iter().product(), conv.geometry().groups),
        Layer::Linear(linear) => (linear.in_features(), 1),
        _ => (0, 1),
    };
    let mut moments = [Moments::new(width, parts)?, Moments::new(width, parts)?];
    let mut seen = 0;
    for x in inputs {
        let Some(x) = x? else { continue };
        // A single row is a single sample.
        let count = if x.dims().len() > 1 { x.dims()[0] } else { 1 };
        for sample in 0..count {
            let moments = &mut moments[usize::from(seen % 4 == 3)];
            seen += 1;
            for part in 0..parts {
                let rows = moments.rows(part);
                match layer {
                    Layer::Conv2d(conv) => patches(&x, sample, conv.geometry(), part, rows),
                    _ => rows.extend_from_slice(&x.as_slice()[x.len() / count * sample..x.len() / count * (sample + 1)]),
                }
                moments.add(part, threads, false)?;
            }
        }
    }
    let [samples, held_out] = moments.map(|moments| moments.finish(threads));
    Ok([samples?, held_out?])
}

/// Hessians of the parts of a layer, and rows that are on their way there.
pub(super) struct Moments {
    hessians: Vec<Hessian>,
    rows: Vec<Vec<f32>>,
}

impl Moments {
    /// Numbers that are gathered before they are added: a square of the width is written each time.
    const GATHERED: usize = 1 << 20;

    pub fn new(width: usize, parts: usize) -> Result<Self> {
        let hessians = (0..parts).map(|_| Hessian::new(width)).collect::<Result<_>>()?;
        Ok(Moments { hessians, rows: vec![Vec::new(); parts] })
    }

    /// Where rows of a part are put.
    pub fn rows(&mut self, part: usize) -> &mut Vec<f32> {
        &mut self.rows[part]
    }

    /// Adds the rows that were put there, once they are many or when those are all.
    pub fn add(&mut self, part: usize, threads: usize, all: bool) -> Result<()> {
        let rows = &mut self.rows[part];
        if !rows.is_empty() && (all || rows.len() * self.hessians.len() >= Self::GATHERED) {
            self.hessians[part].add(rows, threads)?;
            rows.clear();
        }
        Ok(())
    }

    pub fn finish(mut self, threads: usize) -> Result<Vec<Hessian>> {
        (0..self.hessians.len()).try_for_each(|part| self.add(part, threads, true))?;
        Ok(self.hessians)
    }
}

/// What the node reads when the model runs on this batch, codes as the values that they stand for.
pub(in crate::ptq) fn input_of(model: &Model, node: &Node, batch: &[(&str, &Value)]) -> Result<Option<Tensor>> {
    let grid = node.reads().next().and_then(|edge| model.grid(edge));
    match (statistics::input_of(model, node, batch)?, grid) {
        (Some(Value::U8(codes)), Some(grid)) => {
            let values = codes.as_slice().iter().map(|&code| grid.dequantize(code)).collect();
            Tensor::from_shape(codes.shape().clone(), values).map(Some)
        }
        (value, _) => Ok(value.and_then(|value| value.get::<f32>().cloned())),
    }
}
