//! From a model and the shapes of its inputs to a list of steps over numbered buffers.
//!
//! Made once for each set of input shapes, in four passes: what is known before anything runs (shapes, and the values that
//! depend on shapes and constants alone: `known`); which neighbours run as one (`fusion`); in which order the elements of each
//! image lie (row-major at the border and for operators that mix all axes, channels-last between convolutions), with
//! reorderings only where two neighbours disagree (`schedule`); and which buffer each value lives in, a buffer being free
//! again after the last step that reads it (`buffers`).

mod buffers;
mod fusion;
mod known;
mod schedule;

pub(crate) use fusion::Fused;
#[cfg(feature = "onnx")]
pub(crate) use known::shapes_for;
pub(crate) use known::{evaluate_within, shapes};
pub(crate) use schedule::Place;

use std::cell::Cell;

use crate::error::{Error, Result};
use crate::kernels::Range;
use crate::nn::view::Target;
use crate::nn::{Edge, Model};
use crate::tensor::{DType, Shape, Value};

/// Where a value is found while the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The model's input of this index.
    Input(usize),
    /// The value of this index that the plan holds: a constant, or what follows from the shapes.
    Known(usize),
    /// The buffer of this index.
    Buffer(usize),
}

#[derive(Debug)]
pub(crate) enum Step {
    /// Rewrites images in the other order: `n` matrices of `rows x cols`, each transposed.
    Reorder { from: Source, to: Target, matrices: [usize; 3] },
    /// Runs a node, and what was fused into it.
    Run { node: usize, inputs: Vec<Option<Operand>>, channels_last: bool, targets: Vec<Target>, fused: Fused, ranges: Links },
    /// A node whose output is its input under another shape, or was known before the run.
    Pass { node: usize, from: Option<Source> },
}

/// Ranges that one convolution measures while it writes, and those that follow it read; and codes that one fully connected layer leaves for
/// the next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Links {
    /// Where the ranges of the input's images are found.
    pub given: Option<usize>,
    /// Where the ranges of the output's images go.
    pub measured: Option<usize>,
    /// Whether the step before left the input's codes.
    pub kept: bool,
}

/// What a layer does besides its own work, with the ranges themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stage<'a> {
    pub fused: Fused,
    pub given: Option<&'a [Range]>,
    pub measured: Option<&'a [Cell<Range>]>,
    /// Whether the call before left the input's codes in the workspace.
    pub kept: bool,
}

/// What a node reads.
#[derive(Debug)]
pub(crate) struct Operand {
    pub source: Source,
    pub dtype: DType,
    /// Dimensions as they lie in memory.
    pub dims: Vec<usize>,
    /// Bytes of all elements.
    pub bytes: usize,
}

/// Bytes of the buffers of a run with every value shown, for inputs of these shapes that hold zeros.
///
/// # Errors
/// Of shapes that do not fit, naming the layer.
pub(crate) fn buffer_bytes(model: &Model, inputs: &[Shape]) -> Result<usize> {
    let zeros = known::zeros(model, inputs)?;
    Ok(Plan::new(model, false, |i| &zeros[i])?.buffers.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes)))
}

#[derive(Debug)]
pub(crate) struct Plan {
    inputs: Vec<Shape>,
    /// Inputs whose values, not only their shapes, decided something; with those values.
    consulted: Vec<(usize, Value)>,
    fuses: bool,
    pub steps: Vec<Step>,
    /// Bytes of each buffer.
    pub buffers: Vec<usize>,
    /// Number of ranges in each list of them.
    pub ranges: Vec<usize>,
    /// Values that are known without a run.
    pub values: Vec<Value>,
    /// By edge; `None` for what only a fused node sees.
    pub places: Vec<Option<Place>>,
    /// Row-major source of each output.
    pub outputs: Vec<Source>,
}

impl Plan {
    /// Whether this plan was made for inputs like these.
    pub fn fits<'v>(&self, fuses: bool, input: impl Fn(usize) -> &'v Value) -> bool {
        self.fuses == fuses
            && self.inputs.iter().enumerate().all(|(i, shape)| input(i).shape() == shape)
            && self.consulted.iter().all(|(i, value)| input(*i) == value)
    }

    /// The error of a buffer that memory has no room for, naming the node that writes the largest value in it.
    pub fn too_large(&self, model: &Model, buffer: usize) -> Error {
        let bytes = |edge: &Edge| {
            let place = self.places[edge.index].as_ref().filter(|place| place.source == Source::Buffer(buffer));
            place.map(|place| (place.bytes(), place.shape.dims()))
        };
        let written = model.nodes().iter().flat_map(|node| node.outputs().iter().filter_map(move |edge| Some((bytes(edge)?, node.name()))));
        match written.max() {
            Some(((_, dims), node)) => Error::ShapeOverflow { shape: dims.to_vec() }.in_layer(node),
            // An image in its other order.
            None => Error::ShapeOverflow { shape: vec![self.buffers[buffer]] },
        }
    }

    /// The plan for these inputs. With `fuses` unset every node runs by itself, so that every value can be shown.
    ///
    /// # Errors
    /// Of shapes that do not fit, naming the layer.
    pub fn new<'v>(model: &Model, fuses: bool, input: impl Fn(usize) -> &'v Value) -> Result<Plan> {
        let known = known::Known::new(model, &input)?;
        let groups = fusion::groups(model, &known, fuses);
        let mut schedule = schedule::Schedule::new(model, &known, groups)?;
        let buffers = buffers::assign(&mut schedule);
        Ok(Plan {
            inputs: (0..model.inputs().len()).map(|i| input(i).shape().clone()).collect(),
            consulted: known.consulted.iter().map(|&i| (i, input(i).clone())).collect(),
            fuses,
            steps: schedule.steps,
            buffers,
            ranges: schedule.ranges,
            values: schedule.values,
            places: schedule.places,
            outputs: schedule.outputs,
        })
    }
}
