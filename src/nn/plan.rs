//! From a model and the shapes of its inputs to a list of steps over numbered buffers.
//!
//! Two things are decided here, once per shape: in which order the elements of each image lie (row-major at the border
//! and for layers that mix all axes, channels-last between convolutions), with reorderings only where two neighbours
//! disagree; and which buffer each value lives in, a buffer being free again after the last step that reads it.

use crate::error::Result;
use crate::nn::layer::Order;
use crate::nn::{Layer, Model};
use crate::tensor::{Shape, Value};

/// Where a value is found while the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The model's input of this index.
    Input(usize),
    /// The buffer of this index.
    Buffer(usize),
}

#[derive(Debug)]
pub(crate) enum Step {
    /// Rewrites an image `[n, c, h, w]` in the other order.
    Reorder { from: Source, to: usize, dims: [usize; 4], to_channels_last: bool },
    /// Runs a node.
    Run { node: usize, inputs: Vec<Operand>, to: usize },
    /// A node whose output is its input under another shape.
    Rename { node: usize, from: Source },
}

/// What a node reads.
#[derive(Debug)]
pub(crate) struct Operand {
    pub source: Source,
    pub shape: Shape,
    pub channels_last: bool,
}

/// The value of an edge: its shape, where it was written, and where a step rewrote it in the other order.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub shape: Shape,
    pub source: Source,
    /// Whether `source` is channels-last; `None` where both orders are the same.
    written: Option<bool>,
    rewritten: Option<Source>,
}

impl Place {
    fn new(shape: Shape, source: Source, channels_last: bool) -> Self {
        // With one channel, or one pixel, or anything but an image, both orders are the same.
        let same = match *shape.dims() {
            [_, c, h, w] => c == 1 || h * w == 1,
            _ => true,
        };
        Place { shape, source, written: (!same).then_some(channels_last), rewritten: None }
    }

    /// Whether the value, as first written, has to be reordered to be row-major.
    pub fn is_channels_last(&self) -> bool {
        self.written == Some(true)
    }

    fn in_order(&self, channels_last: bool) -> Option<Source> {
        match self.written {
            Some(written) if written != channels_last => self.rewritten,
            _ => Some(self.source),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Plan {
    inputs: Vec<Shape>,
    pub steps: Vec<Step>,
    /// Elements of each f32 buffer.
    pub buffers: Vec<usize>,
    /// By edge.
    pub places: Vec<Option<Place>>,
    /// Row-major source of each output.
    pub outputs: Vec<Source>,
}

impl Plan {
    /// Whether this plan was made for inputs of these shapes.
    pub fn fits<'v>(&self, mut inputs: impl Iterator<Item = &'v Value>) -> bool {
        self.inputs.iter().all(|shape| inputs.next().is_some_and(|value| value.shape() == shape))
    }

    /// # Errors
    /// Of shapes that do not fit, naming the layer.
    pub fn new(model: &Model, inputs: Vec<Shape>) -> Result<Plan> {
        let mut planner = Planner { places: vec![None; model.edge_count()], steps: Vec::new(), virtuals: Vec::new() };
        for (i, (input, shape)) in model.inputs().iter().zip(&inputs).enumerate() {
            planner.places[input.edge().index] = Some(Place::new(shape.clone(), Source::Input(i), false));
        }
        for index in 0..model.nodes().len() {
            planner.node(model, index).map_err(|e| e.in_layer(model.nodes()[index].name()))?;
        }
        let mut outputs: Vec<Source> = model.outputs().iter().map(|output| planner.in_order(output.edge().index, false)).collect();
        let (mut steps, mut places) = (planner.steps, planner.places);
        let buffers = assign(&planner.virtuals, &mut steps, &mut places, &mut outputs);
        Ok(Plan { inputs, steps, buffers, places, outputs })
    }
}

struct Planner {
    places: Vec<Option<Place>>,
    steps: Vec<Step>,
    /// Elements of each value that a step makes; `Source::Buffer` and `to` number these until buffers are assigned.
    virtuals: Vec<usize>,
}

impl Planner {
    fn node(&mut self, model: &Model, index: usize) -> Result<()> {
        let node = &model.nodes()[index];
        let places: Vec<&Place> = node.inputs().iter().map(|edge| self.place(edge.index)).collect();
        let shapes: Vec<Shape> = places.iter().map(|place| place.shape.clone()).collect();
        let shape = node.layer().infer_shape(&shapes.iter().collect::<Vec<_>>())?;
        let channels_last = match node.layer().order() {
            Order::ChannelsLast => true,
            Order::RowMajor => false,
            // Channels-last as soon as one of the inputs is only there in that order.
            Order::Elementwise => places.iter().any(|place| place.in_order(false).is_none()),
            Order::AnyToChannelsLast => places[0].in_order(false).is_none(),
        };
        let sources: Vec<Source> = node.inputs().iter().map(|edge| self.in_order(edge.index, channels_last)).collect();
        let output = node.outputs()[0].index;
        if matches!(node.layer(), Layer::Flatten { .. }) {
            self.places[output] = Some(Place::new(shape, sources[0], false));
            self.steps.push(Step::Rename { node: index, from: sources[0] });
            return Ok(());
        }
        let to = self.buffer(shape.elements());
        let written_channels_last = channels_last || node.layer().order() == Order::AnyToChannelsLast;
        self.places[output] = Some(Place::new(shape, Source::Buffer(to), written_channels_last));
        let operand = |(source, shape)| Operand { source, shape, channels_last };
        self.steps.push(Step::Run { node: index, inputs: sources.into_iter().zip(shapes).map(operand).collect(), to });
        Ok(())
    }

    fn place(&self, edge: usize) -> &Place {
        self.places[edge].as_ref().expect("the builder adds nodes after the edges that they read")
    }

    fn buffer(&mut self, elements: usize) -> usize {
        self.virtuals.push(elements);
        self.virtuals.len() - 1
    }

    /// The edge's value in that order, reordered first if need be.
    fn in_order(&mut self, edge: usize, channels_last: bool) -> Source {
        let place = self.place(edge);
        if let Some(source) = place.in_order(channels_last) {
            return source;
        }
        let from = place.source;
        let dims: [usize; 4] = place.shape.dims().try_into().expect("only images have two orders");
        let to = self.buffer(place.shape.elements());
        self.steps.push(Step::Reorder { from, to, dims, to_channels_last: channels_last });
        self.places[edge].as_mut().expect("looked up above").rewritten = Some(Source::Buffer(to));
        Source::Buffer(to)
    }
}

/// Numbers the buffers: each value takes a free one (the largest, grown if need be), freed after its last reader.
fn assign(virtuals: &[usize], steps: &mut [Step], places: &mut [Option<Place>], outputs: &mut [Source]) -> Vec<usize> {
    let mut last_use: Vec<usize> = vec![0; virtuals.len()];
    for (at, step) in steps.iter().enumerate() {
        let mut touch = |source: Source| {
            if let Source::Buffer(v) = source {
                last_use[v] = at;
            }
        };
        match step {
            Step::Reorder { from, to, .. } => [*from, Source::Buffer(*to)].into_iter().for_each(&mut touch),
            Step::Run { inputs, to, .. } => inputs.iter().map(|operand| operand.source).chain([Source::Buffer(*to)]).for_each(&mut touch),
            Step::Rename { from, .. } => touch(*from),
        }
    }
    for source in outputs.iter() {
        if let Source::Buffer(v) = source {
            last_use[*v] = usize::MAX;
        }
    }
    let (mut sizes, mut free): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut number: Vec<usize> = vec![usize::MAX; virtuals.len()];
    for (at, step) in steps.iter_mut().enumerate() {
        if let Step::Reorder { to, .. } | Step::Run { to, .. } = step {
            let largest = (0..free.len()).max_by_key(|&i| sizes[free[i]]);
            let buffer = largest.map_or_else(
                || {
                    sizes.push(0);
                    sizes.len() - 1
                },
                |i| free.swap_remove(i),
            );
            sizes[buffer] = sizes[buffer].max(virtuals[*to]);
            number[*to] = buffer;
            *to = buffer;
        }
        for (v, &last) in last_use.iter().enumerate() {
            if last == at && number[v] != usize::MAX {
                free.push(number[v]);
            }
        }
    }
    let renumber = |source: &mut Source| {
        if let Source::Buffer(v) = source {
            *v = number[*v];
        }
    };
    for step in steps {
        match step {
            Step::Reorder { from, .. } | Step::Rename { from, .. } => renumber(from),
            Step::Run { inputs, .. } => inputs.iter_mut().for_each(|operand| renumber(&mut operand.source)),
        }
    }
    for place in places.iter_mut().flatten() {
        renumber(&mut place.source);
        place.rewritten.iter_mut().for_each(renumber);
    }
    outputs.iter_mut().for_each(renumber);
    sizes
}
