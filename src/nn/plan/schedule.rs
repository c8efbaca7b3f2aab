//! The order of elements of each image, and the steps.

use super::fusion::{Fused, Group};
use super::known::Known;
use super::{Links, Operand, Source, Step};
use std::collections::HashMap;

use crate::error::Result;
use crate::kernels::Aligned;
use crate::nn::layer::Order;
use crate::nn::quantized;
use crate::nn::reorder;
use crate::nn::view::{Target, physical_dims};
use crate::nn::{Edge, Layer, Model, Node};
use crate::tensor::{DType, Shape, Value};

/// The value of an edge: its shape, where it was written, and where a step rewrote it in the other order.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub shape: Shape,
    pub dtype: DType,
    pub source: Source,
    /// Whether `source` is channels-last; `None` where both orders are the same.
    written: Option<bool>,
    rewritten: Option<Source>,
}

impl Place {
    fn new(shape: Shape, dtype: DType, source: Source, channels_last: bool) -> Self {
        let same = !matches!(*shape.dims(), [n, c, h, w] if !orders_agree([n, c, h, w]));
        Place { shape, dtype, source, written: (!same).then_some(channels_last), rewritten: None }
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

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.bytes()
    }

    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut Source> {
        std::iter::once(&mut self.source).chain(&mut self.rewritten)
    }
}

/// With one channel, or one pixel, both orders are the same.
fn orders_agree([_, c, h, w]: [usize; 4]) -> bool {
    c == 1 || h * w == 1
}

/// The steps, over buffers that are numbered one a value until they are assigned.
pub(super) struct Schedule<'m> {
    model: &'m Model,
    known: &'m Known<'m>,
    pub steps: Vec<Step>,
    pub values: Vec<Value>,
    pub places: Vec<Option<Place>>,
    pub outputs: Vec<Source>,
    /// Bytes of each value that a step writes.
    pub virtuals: Vec<usize>,
    /// Number of ranges in each list of them.
    pub ranges: Vec<usize>,
}

impl<'m> Schedule<'m> {
    pub fn new(model: &'m Model, known: &'m Known<'m>, groups: Vec<Group>) -> Result<Self> {
        let mut schedule = Schedule {
            model,
            known,
            steps: Vec::with_capacity(groups.len()),
            values: Vec::new(),
            places: vec![None; model.edge_count()],
            outputs: Vec::new(),
            virtuals: Vec::new(),
            ranges: Vec::new(),
        };
        for (i, input) in model.inputs().iter().enumerate() {
            schedule.place(input.edge(), Source::Input(i), false);
        }
        for (edge, value) in model.constants() {
            schedule.know(*edge, value.clone());
        }
        for group in groups {
            let name = model.nodes()[group.node].name();
            schedule.group(group).map_err(|e| e.in_layer(name))?;
        }
        for output in model.outputs() {
            let source = schedule.in_order(output.edge().index, false)?;
            schedule.outputs.push(source);
        }
        schedule.link();
        Ok(schedule)
    }

    /// Where int8 convolutions read what a convolution wrote, the writer measures the ranges that they need. Where a fully connected layer
    /// reads what the step before it read, it takes its codes.
    fn link(&mut self) {
        let layer = |node: usize| self.model.nodes()[node].layer();
        let mut writers: HashMap<usize, usize> = HashMap::new();
        // What the step before encoded, if it was a fully connected layer.
        let mut encoded: Option<(Source, &quantized::Linear)> = None;
        for at in 0..self.steps.len() {
            let (before, rest) = self.steps.split_at_mut(at);
            let Step::Run { node, inputs, targets, ranges: links, .. } = &mut rest[0] else { continue };
            let linear = match (layer(*node), &inputs[..]) {
                (Layer::QuantizedLinear(linear), [Some(Operand { source, .. }), ..]) => Some((*source, linear)),
                _ => None,
            };
            let same = linear.zip(encoded).is_some_and(|((x, linear), (before, other))| x == before && linear.encodes_alike(other));
            (links.kept, encoded) = (same, linear);
            if matches!(layer(*node), Layer::Conv2d(_) | Layer::QuantizedConv2d(_)) {
                let read = inputs[0].as_ref().filter(|_| matches!(layer(*node), Layer::QuantizedConv2d(_)));
                let written = targets[0].buffer;
                if let Some(Operand { source: Source::Buffer(v), dims, .. }) = read
                    && let Some(&from) = writers.get(v)
                    && let Step::Run { targets, ranges, .. } = &mut before[from]
                    && targets[0].dims == *dims
                {
                    let list = *ranges.measured.get_or_insert_with(|| {
                        self.ranges.push(targets[0].dims[0]);
                        self.ranges.len() - 1
                    });
                    links.given = Some(list);
                }
                writers.insert(written, at);
            }
        }
    }

    fn place(&mut self, edge: Edge, source: Source, channels_last: bool) {
        let place = Place::new(self.known.shapes[edge.index].clone(), self.model.edge_type(edge), source, channels_last);
        self.places[edge.index] = Some(place);
    }

    fn know(&mut self, edge: Edge, value: Value) {
        self.values.push(value);
        self.place(edge, Source::Known(self.values.len() - 1), false);
    }

    fn group(&mut self, group: Group) -> Result<()> {
        let node = &self.model.nodes()[group.node];
        if self.known.folded[group.node] {
            for &edge in node.outputs() {
                let value = self.known.values[edge.index].clone().expect("a folded node's outputs are known");
                self.know(edge, value);
            }
            self.steps.push(Step::Pass { node: group.node, from: None });
            return Ok(());
        }
        let outputs = self.model.nodes()[group.last].outputs();
        if node.layer().renames() {
            let edge = node.inputs()[0].expect("checked when the types were inferred");
            let source = self.in_order(edge.index, false)?;
            self.place(outputs[0], source, false);
            self.steps.push(Step::Pass { node: group.node, from: Some(source) });
            return Ok(());
        }
        let (channels_last, writes_channels_last) = self.order(node);
        let mut inputs = Vec::with_capacity(node.inputs().len() + 1);
        let static_layer = node.layer().static_output().is_some();
        for (i, edge) in node.inputs().iter().enumerate() {
            // A residual lies as the output does.
            let channels_last = if static_layer && i == 1 { writes_channels_last } else { channels_last };
            inputs.push(edge.map(|edge| self.operand(edge.index, channels_last)).transpose()?);
        }
        if let Some(residual) = group.residual {
            inputs.push(Some(self.operand(residual, writes_channels_last)?));
        }
        let mut targets = Vec::with_capacity(outputs.len());
        for &edge in outputs {
            let target = self.target(self.model.edge_type(edge), self.known.shapes[edge.index].dims(), writes_channels_last);
            self.place(edge, Source::Buffer(target.buffer), writes_channels_last);
            targets.push(target);
        }
        let fused = Fused { activation: group.activation, residual: group.residual.is_some(), function: group.function };
        let ranges = Links::default();
        self.steps.push(Step::Run { node: group.node, inputs, channels_last, targets, fused, ranges });
        Ok(())
    }

    /// Whether images are read, and written, channels-last.
    fn order(&self, node: &Node) -> (bool, bool) {
        let place = |edge: Edge| self.places[edge.index].as_ref().expect("written by a step before");
        // Channels-last as soon as one of the images is only there in that order.
        let only_channels_last = || node.reads().any(|edge| place(edge).in_order(false).is_none());
        // Anything but an image has one order; what is alike an image beside none stays as it is.
        let image = |edge: Edge| place(edge).shape.rank() == 4;
        match node.layer().order() {
            Order::ChannelsLast | Order::Any if !node.reads().any(image) => (false, false),
            Order::ChannelsLast => (true, true),
            Order::RowMajor => (false, false),
            Order::Any => {
                let last = node.reads().all(|edge| place(edge).shape.rank() <= 4) && only_channels_last();
                (last, last)
            }
            Order::AnyToChannelsLast => (only_channels_last(), true),
            Order::AnyToRowMajor => (only_channels_last(), false),
        }
    }

    fn target(&mut self, dtype: DType, dims: &[usize], channels_last: bool) -> Target {
        let bytes = dims.iter().product::<usize>() * dtype.bytes();
        self.virtuals.push(bytes);
        Target { dtype, dims: physical_dims(dims, channels_last), bytes, buffer: self.virtuals.len() - 1 }
    }

    fn operand(&mut self, edge: usize, channels_last: bool) -> Result<Operand> {
        let place = self.places[edge].as_ref().expect("written by a step before");
        let (dtype, bytes, dims) = (place.dtype, place.bytes(), place.shape.dims().to_vec());
        let source = match dims.len() {
            // Beside channels-last images, axes that are missing in front are of length 1.
            1..=3 if channels_last => {
                let mut image = [1; 4];
                image[4 - dims.len()..].copy_from_slice(&dims);
                let source = place.source;
                let source = if orders_agree(image) { source } else { self.reorder(source, dtype, image, true)? };
                return Ok(Operand { source, dtype, dims: physical_dims(&image, true), bytes });
            }
            _ => self.in_order(edge, channels_last)?,
        };
        Ok(Operand { source, dtype, dims: physical_dims(&dims, channels_last), bytes })
    }

    /// The edge's value in that order, reordered first if need be.
    fn in_order(&mut self, edge: usize, channels_last: bool) -> Result<Source> {
        let place = self.places[edge].as_ref().expect("written by a step before");
        if let Some(source) = place.in_order(channels_last) {
            return Ok(source);
        }
        let image: [usize; 4] = place.shape.dims().try_into().expect("only images have two orders");
        let source = self.reorder(place.source, place.dtype, image, channels_last)?;
        self.places[edge].as_mut().expect("looked up above").rewritten = Some(source);
        Ok(source)
    }

    /// The image in the other order: by a step, or now where it is known.
    fn reorder(&mut self, from: Source, dtype: DType, image: [usize; 4], to_channels_last: bool) -> Result<Source> {
        let [n, c, h, w] = image;
        let matrices = if to_channels_last { [n, c, h * w] } else { [n, h * w, c] };
        if let Source::Known(i) = from {
            let (value, mut reordered) = (self.values[i].bytes(), Aligned::default());
            let reordered = &mut reordered.grow::<u8>(value.len())[..value.len()];
            reorder::transpose(value, dtype.bytes(), matrices, reordered);
            self.values.push(Value::from_bytes(dtype, Shape::new(physical_dims(&image, to_channels_last))?, reordered)?);
            return Ok(Source::Known(self.values.len() - 1));
        }
        let to = self.target(dtype, &image, to_channels_last);
        let source = Source::Buffer(to.buffer);
        self.steps.push(Step::Reorder { from, to, matrices });
        Ok(source)
    }
}
