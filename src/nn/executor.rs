//! Running a model: one plan, one set of buffers, one workspace, kept between calls.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::kernels::{Aligned, ImageLayout, ImageShape, Range, Workspace};
use crate::nn::activation::{add, relu, relu6, softmax};
use crate::nn::plan::{Operand, Place, Plan, Source, Stage, Step};
use crate::nn::recurrent::Scratch;
use crate::nn::reorder;
use crate::nn::rewrite;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::nn::{Layer, Model, Node};
use crate::tensor::{DType, Shape, Tensor, Value};

/// Plans that an executor keeps, one for each set of input shapes.
const PLANS: usize = 8;

/// A value as it passes by: what [`Executor::forward_with`] and [`Executor::run_with`] show to their callback.
#[derive(Debug)]
#[non_exhaustive]
pub struct Tap<'a> {
    /// Name of the edge.
    pub edge: &'a str,
    /// The node that wrote it; `None` for an input of the model.
    pub node: Option<&'a Node>,
    /// The value, row-major in the model's own shape (`[n, c, h, w]` for images).
    pub value: &'a Value,
}

/// A model ready to run again and again.
///
/// Owns the plan, the buffers and the number of threads; after the first run of a shape, [`Executor::run_into`] on one
/// thread allocates nothing for layers and the common operators (a product of two values and attention do, and so do some that
/// are rare). It keeps the plans of the last eight sets of input shapes. Results do not depend on the number of threads, nor on
/// the batch that an image came in, unless a layer quantizes its input by the range of the whole tensor
/// ([`RangeOf::Tensor`](crate::kernels::RangeOf)).
///
/// What follows a layer with weights (batch norm, the sum with another value, a clamp; GELU or Swish after a fully connected
/// one in float or dynamic int8) runs inside it; functions that an exporter spelled out run as one, and so do attention's products and softmax. Where
/// every value is shown ([`Executor::forward_with`], [`Executor::run_with`]) every node runs by itself, and results may then
/// differ in the last bits.
///
/// ```
/// # use lowprec::nn::{Dim, Layer, Model};
/// # use lowprec::{DType, Tensor, Value};
/// # let mut net = Model::builder();
/// # let x = net.input("x", DType::F32, &[Dim::Any])?;
/// # let y = net.add("relu", Layer::Relu, &[x])?;
/// # net.output("y", y)?;
/// # let model = net.build()?;
/// use lowprec::nn::Executor;
/// let mut executor = Executor::new(&model).with_threads(1)?;
/// let x = Value::from(Tensor::new([2], vec![-1.0f32, 1.0])?);
/// let mut y = Value::from(Tensor::new([2], vec![0.0f32, 0.0])?);
/// executor.run_into(&[("x", &x)], &mut [("y", &mut y)])?;
/// assert_eq!(y, Value::from(Tensor::new([2], vec![0.0f32, 1.0])?));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug)]
pub struct Executor {
    model: Model,
    // The same function in fewer nodes, made by the first run that shows no values.
    rewritten: Option<Model>,
    threads: usize,
    // The last ones used, the last of them last.
    plans: Vec<Plan>,
    buffers: Vec<Aligned>,
    // Where the buffers stay that a step writes, while it runs.
    taken: Vec<Aligned>,
    workspace: Workspace,
    recurrent: Scratch,
    // Ranges of images, list by list, that one convolution leaves for the next.
    ranges: Vec<Vec<Range>>,
    // Position of each of the model's inputs in the list that the caller gave.
    positions: Vec<usize>,
    // There while it profiles.
    clock: Option<Clock>,
}

/// Time from one node's end to the next one's.
#[derive(Debug)]
struct Clock {
    last: Instant,
    laps: Vec<(String, Duration)>,
}

impl Clock {
    fn lap(&mut self, node: &Node) {
        let now = Instant::now();
        self.laps.push((node.name().to_owned(), now - self.last));
        self.last = now;
    }
}

impl Executor {
    /// An executor that may use all threads of the caller's rayon pool (one without the feature `parallel`).
    pub fn new(model: &Model) -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Executor {
            model: model.clone(),
            rewritten: None,
            threads,
            plans: Vec::new(),
            buffers: Vec::new(),
            taken: Vec::new(),
            workspace: Workspace::default(),
            recurrent: Scratch::default(),
            ranges: Vec::new(),
            positions: Vec::new(),
            clock: None,
        }
    }

    /// Limits the number of threads.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        match threads {
            0 => Err(Error::parameter("threads", 0, "must be at least 1")),
            threads => Ok(Executor { threads, ..self }),
        }
    }

    /// The model that it runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The largest number of threads that a run uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// One input in, one output out.
    ///
    /// # Errors
    /// Those of [`Model::forward`].
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        self.single(x, None)
    }

    /// As [`Executor::forward`], showing every value to `tap`: the input first, then each node's output as it is made.
    ///
    /// # Errors
    /// Those of [`Model::forward`], and what `tap` returns.
    pub fn forward_with(&mut self, x: &Tensor, mut tap: impl FnMut(&Tap<'_>) -> Result<()>) -> Result<Tensor> {
        self.single(x, Some(&mut tap))
    }

    fn single(&mut self, x: &Tensor, tap: Option<&mut Callback<'_>>) -> Result<Tensor> {
        let model = self.model.clone();
        let (input, _) = model.single()?;
        let x = Value::from(x.clone());
        self.execute(&[(input, &x)], tap)?;
        match self.output(0, &[(input, &x)])? {
            Value::F32(y) => Ok(y),
            other => Err(Error::Type { what: "output of the model".into(), expected: "f32", got: other.dtype().name() }),
        }
    }

    /// Several named inputs in, all named outputs out, in the model's order.
    ///
    /// # Errors
    /// Those of [`Model::run`].
    pub fn run(&mut self, inputs: &[(&str, &Value)]) -> Result<Vec<(String, Value)>> {
        self.several(inputs, None)
    }

    /// As [`Executor::run`], showing every value to `tap`: the inputs first, in the model's order, then each node's output as
    /// it is made.
    ///
    /// # Errors
    /// Those of [`Model::run`], and what `tap` returns.
    pub fn run_with(&mut self, inputs: &[(&str, &Value)], mut tap: impl FnMut(&Tap<'_>) -> Result<()>) -> Result<Vec<(String, Value)>> {
        self.several(inputs, Some(&mut tap))
    }

    fn several(&mut self, inputs: &[(&str, &Value)], tap: Option<&mut Callback<'_>>) -> Result<Vec<(String, Value)>> {
        self.execute(inputs, tap)?;
        let model = self.model.clone();
        model.outputs().iter().enumerate().map(|(i, output)| Ok((output.name().to_owned(), self.output(i, inputs)?))).collect()
    }

    /// Several named inputs in, the named outputs written to the caller's values. A value of the output's type and
    /// shape that no clone shares is written in place; any other is replaced. Outputs that are not named are not copied.
    ///
    /// # Errors
    /// Those of [`Model::run`]; [`Error::Unknown`] for a name that is no output.
    pub fn run_into(&mut self, inputs: &[(&str, &Value)], outputs: &mut [(&str, &mut Value)]) -> Result<()> {
        for (name, _) in outputs.iter() {
            if !self.model.outputs().iter().any(|output| output.name() == *name) {
                let present = self.model.outputs().iter().map(|output| output.name()).collect();
                return Err(Error::Unknown { what: "output", name: (*name).to_owned(), present });
            }
        }
        self.execute(inputs, None)?;
        for (name, value) in outputs.iter_mut() {
            let index = self.model.outputs().iter().position(|output| output.name() == *name).expect("checked above");
            self.output_into(index, inputs, value)?;
        }
        Ok(())
    }

    /// Median time that each node of a run takes, in the order in which they run, of `rounds` runs after one that is not counted.
    ///
    /// What runs inside another node (an activation in a convolution) is part of its time, and so is what had to be reordered
    /// before it. A node that only renames its input takes none.
    ///
    /// # Errors
    /// Those of [`Model::run`].
    pub fn profile(&mut self, inputs: &[(&str, &Value)], rounds: usize) -> Result<Vec<(String, Duration)>> {
        self.execute(inputs, None)?;
        let mut runs: Vec<Vec<(String, Duration)>> = Vec::with_capacity(rounds);
        for _ in 0..rounds.max(1) {
            self.clock = Some(Clock { last: Instant::now(), laps: Vec::new() });
            let done = self.execute(inputs, None);
            runs.extend(self.clock.take().map(|clock| clock.laps));
            done?;
        }
        let median = |(i, (name, _)): (usize, &(String, Duration))| {
            let mut times: Vec<Duration> = runs.iter().map(|run| run[i].1).collect();
            times.sort_unstable();
            (name.clone(), times[times.len() / 2])
        };
        Ok(runs[0].iter().enumerate().map(median).collect())
    }

    fn execute(&mut self, inputs: &[(&str, &Value)], mut tap: Option<&mut Callback<'_>>) -> Result<()> {
        self.accept(inputs, tap.is_none())?;
        let Executor { model, rewritten, threads, plans, buffers, taken, workspace, recurrent, ranges, positions, clock } = self;
        let plan = plans.last().expect("accept made one");
        let given = Given { inputs, positions, values: &plan.values };
        let model = if tap.is_none() { rewritten.as_ref().unwrap_or(model) } else { model };
        if let Some(tap) = &mut tap {
            for input in model.inputs() {
                let value = inputs.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value).expect("accept found it");
                tap(&Tap { edge: model.edge_name(input.edge()), node: None, value })?;
            }
        }
        ranges.resize_with(plan.ranges.len().max(ranges.len()), Vec::new);
        for (list, &length) in ranges.iter_mut().zip(&plan.ranges) {
            list.resize(length, Range { min: 0.0, max: 0.0, finite: true });
        }
        for step in &plan.steps {
            let node = match step {
                Step::Reorder { from, to, matrices } => {
                    let mut memory = std::mem::take(&mut buffers[to.buffer]);
                    let output = &mut memory.grow::<u8>(to.bytes)[..to.bytes];
                    reorder::transpose(given.bytes(*from, to.bytes, buffers), to.dtype.bytes(), *matrices, output);
                    buffers[to.buffer] = memory;
                    continue;
                }
                Step::Run { node: index, inputs: operands, channels_last, targets, fused, ranges: links } => {
                    let node = &model.nodes()[*index];
                    taken.extend(targets.iter().map(|target| std::mem::take(&mut buffers[target.buffer])));
                    let find = |i: usize| {
                        let Operand { source, dtype, dims, bytes } = operands[i].as_ref()?;
                        // A sum that is written over what it adds is already where it has to be.
                        let in_place = matches!(source, Source::Buffer(buffer) if targets.iter().any(|target| target.buffer == *buffer));
                        (!in_place).then(|| View { dtype: *dtype, dims, bytes: given.bytes(*source, *bytes, buffers) })
                    };
                    let read = Inputs::new(&find, operands.len(), *channels_last);
                    let mut written = Outputs::new(taken, targets);
                    let mut measured = links.measured.map(|list| std::mem::take(&mut ranges[list]));
                    let stage = Stage {
                        fused: *fused,
                        given: links.given.map(|list| &ranges[list][..]),
                        measured: measured.as_deref_mut().map(|list| Cell::from_mut(list).as_slice_of_cells()),
                        kept: links.kept,
                    };
                    let done = match node.layer() {
                        Layer::Operator(operator) => operator.operation().run(&read, &mut written, workspace, *threads),
                        Layer::Lstm(layer) => layer.run(&read, &mut written, recurrent, workspace, *threads),
                        Layer::Gru(layer) => layer.run(&read, &mut written, recurrent, workspace, *threads),
                        layer => run(layer, read, written.get(0), stage, workspace, *threads),
                    };
                    if let (Some(list), Some(measured)) = (links.measured, measured) {
                        ranges[list] = measured;
                    }
                    for (memory, target) in taken.drain(..).zip(targets) {
                        buffers[target.buffer] = memory;
                    }
                    done.map_err(|e| e.in_node(node.name(), &node.layer().kind()))?;
                    node
                }
                Step::Pass { node, .. } => &model.nodes()[*node],
            };
            if let Some(clock) = clock {
                clock.lap(node);
            }
            if let Some(tap) = &mut tap {
                for &edge in node.outputs() {
                    let place = plan.places[edge.index].as_ref().expect("nothing is fused where values are shown");
                    let value = given.value(place.source, place.dtype, &place.shape, place.is_channels_last(), buffers)?;
                    tap(&Tap { edge: model.edge_name(edge), node: Some(node), value: &value })?;
                }
            }
        }
        Ok(())
    }

    /// Checks the inputs and puts the plan that fits them last, making it if there is none.
    fn accept(&mut self, inputs: &[(&str, &Value)], fuses: bool) -> Result<()> {
        for (i, (name, _)) in inputs.iter().enumerate() {
            if !self.model.inputs().iter().any(|input| input.name() == *name) {
                return Err(self.model.unknown_input(name));
            }
            if inputs[..i].iter().any(|(other, _)| other == name) {
                return Err(Error::Duplicate { what: "input", name: (*name).to_owned() });
            }
        }
        self.positions.clear();
        for input in self.model.inputs() {
            let position = inputs.iter().position(|(name, _)| *name == input.name());
            let position = position.ok_or_else(|| Error::Unknown {
                what: "given input",
                name: input.name().to_owned(),
                present: inputs.iter().map(|(name, _)| *name).collect(),
            })?;
            input.check(inputs[position].1)?;
            self.positions.push(position);
        }
        let positions = &self.positions;
        let input = |i: usize| inputs[positions[i]].1;
        if let Some(found) = self.plans.iter().rposition(|plan| plan.fits(fuses, input)) {
            self.plans[found..].rotate_left(1);
            return Ok(());
        }
        if fuses && self.rewritten.is_none() {
            self.rewritten = Some(rewrite::for_execution(&self.model, true)?.unwrap_or_else(|| self.model.clone()));
        }
        let mut model = if fuses { self.rewritten.as_ref().unwrap_or(&self.model) } else { &self.model };
        let plan = match Plan::new(model, fuses, input) {
            // What was put together without knowing any shape may not go together for these; and an error names the model's own nodes.
            Err(_) if fuses => {
                let parts = rewrite::for_execution(&self.model, false)?.unwrap_or_else(|| self.model.clone());
                let (parts, plan) = match Plan::new(&parts, fuses, input) {
                    Ok(plan) => (parts, plan),
                    Err(_) => (self.model.clone(), Plan::new(&self.model, fuses, input)?),
                };
                self.plans.clear();
                model = self.rewritten.insert(parts);
                plan
            }
            plan => plan?,
        };
        self.buffers.resize_with(plan.buffers.len().max(self.buffers.len()), Aligned::default);
        for (index, (buffer, &bytes)) in self.buffers.iter_mut().zip(&plan.buffers).enumerate() {
            buffer.try_grow(bytes).map_err(|_| plan.too_large(model, index))?;
        }
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        self.plans.push(plan);
        Ok(())
    }

    fn output(&self, index: usize, inputs: &[(&str, &Value)]) -> Result<Value> {
        let (plan, place) = self.output_place(index);
        let given = Given { inputs, positions: &self.positions, values: &plan.values };
        given.value(plan.outputs[index], place.dtype, &place.shape, false, &self.buffers)
    }

    fn output_into(&self, index: usize, inputs: &[(&str, &Value)], value: &mut Value) -> Result<()> {
        let (plan, place) = self.output_place(index);
        if value.dtype() == place.dtype && value.shape() == &place.shape {
            let given = Given { inputs, positions: &self.positions, values: &plan.values };
            value.copy_from_bytes(given.bytes(plan.outputs[index], place.bytes(), &self.buffers))?;
        } else {
            *value = self.output(index, inputs)?;
        }
        Ok(())
    }

    fn output_place(&self, index: usize) -> (&Plan, &Place) {
        let plan = self.plans.last().expect("a run came before");
        let place = plan.places[self.model.outputs()[index].edge().index].as_ref();
        (plan, place.expect("outputs are never fused away"))
    }
}

/// What a tap calls.
type Callback<'a> = dyn FnMut(&Tap<'_>) -> Result<()> + 'a;

/// What a run reads besides its buffers: the caller's inputs, found by the model's numbering, and the plan's values.
struct Given<'a> {
    inputs: &'a [(&'a str, &'a Value)],
    positions: &'a [usize],
    values: &'a [Value],
}

impl Given<'_> {
    fn bytes<'s>(&'s self, source: Source, length: usize, buffers: &'s [Aligned]) -> &'s [u8] {
        match source {
            Source::Buffer(buffer) => &buffers[buffer].as_slice::<u8>()[..length],
            Source::Input(i) => self.inputs[self.positions[i]].1.bytes(),
            Source::Known(i) => self.values[i].bytes(),
        }
    }

    /// A row-major copy of a value (an input and a constant keep their data).
    fn value(&self, source: Source, dtype: DType, shape: &Shape, channels_last: bool, buffers: &[Aligned]) -> Result<Value> {
        match source {
            Source::Input(i) => return self.inputs[self.positions[i]].1.reshape(shape.dims()),
            Source::Known(i) if !channels_last => return self.values[i].reshape(shape.dims()),
            _ => {}
        }
        let data = self.bytes(source, shape.elements() * dtype.bytes(), buffers);
        match *shape.dims() {
            [n, c, h, w] if channels_last => {
                let mut row_major = Aligned::default();
                let row_major = &mut row_major.grow::<u8>(data.len())[..data.len()];
                reorder::transpose(data, dtype.bytes(), [n, h * w, c], row_major);
                Value::from_bytes(dtype, shape.clone(), row_major)
            }
            _ => Value::from_bytes(dtype, shape.clone(), data),
        }
    }
}

/// Runs one layer of floats on values whose types and shapes the planner worked out.
fn run(
    layer: &Layer,
    inputs: Inputs<'_>,
    mut output: ViewMut<'_>,
    stage: Stage<'_>,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let (view, fused) = (inputs.need(0)?, stage.fused);
    let image = || match *view.dims {
        [n, h, w, _] if inputs.channels_last() => Ok(ImageShape { n, h, w, layout: ImageLayout::Nhwc }),
        [n, _, h, w] => Ok(ImageShape { n, h, w, layout: ImageLayout::Nchw }),
        _ => Err(Error::shape("input", "[n, c, h, w]", view.dims)),
    };
    let rows = || view.dims.iter().rev().skip(1).product();
    let residual = || inputs.get(1).map(|residual| residual.bytes);
    match layer {
        Layer::Embedding(table) => return table.run(&view, &mut output),
        Layer::QuantizedEmbedding(table) => return table.run(&view, &mut output),
        Layer::WeightOnlyEmbedding(table) => return table.run(&view, &mut output),
        Layer::StaticConv2d(conv) => {
            return conv.forward(view.bytes, image()?, residual(), output.codes_or_floats(), workspace, threads);
        }
        Layer::StaticLinear(linear) => {
            return linear.forward(view.bytes, rows(), residual(), output.codes_or_floats(), workspace, threads);
        }
        _ => {}
    }
    let (x, y) = (view.f32(), output.f32());
    if fused.residual
        && let Some(residual) = inputs.get(inputs.count() - 1)
    {
        y.copy_from_slice(residual.f32());
    }
    let nhwc = || <[usize; 4]>::try_from(view.dims).map_err(|_| Error::shape("input", "[n, c, h, w]", view.dims));
    let pixels = || nhwc().map(|[n, h, w, _]| [n, h, w]);
    match layer {
        Layer::Conv2d(conv) => conv.run(x, image()?, stage, y, workspace, threads),
        Layer::QuantizedConv2d(conv) => conv.run(x, image()?, stage, y, workspace, threads),
        Layer::ConvTranspose2d(conv) => conv.run(x, pixels()?, fused.activation, y, workspace, threads),
        Layer::QuantizedConvTranspose2d(conv) => conv.run(x, pixels()?, fused.activation, y, workspace, threads),
        Layer::Linear(linear) => linear.run(x, rows(), fused, y, threads),
        Layer::QuantizedLinear(linear) => linear.run(x, rows(), stage, y, workspace, threads),
        Layer::WeightOnlyLinear(linear) => linear.run(x, rows(), fused, y, workspace, threads),
        Layer::WeightOnlyConv2d(conv) => conv.run(x, image()?, fused, y, workspace, threads),
        Layer::BatchNorm2d(norm) => norm.forward(x, y),
        Layer::Relu => relu(x, y),
        Layer::Relu6 => relu6(x, y),
        Layer::MaxPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::AvgPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::GlobalAvgPool2d(pool) => pool.forward(x, nhwc()?, y),
        Layer::Add => add(x, inputs.need(1)?.f32(), y),
        Layer::Softmax { axis } => softmax(x, around(view.dims, *axis), y),
        Layer::Flatten { .. }
        | Layer::Embedding(_)
        | Layer::QuantizedEmbedding(_)
        | Layer::WeightOnlyEmbedding(_)
        | Layer::StaticConv2d(_)
        | Layer::StaticLinear(_) => {
            unreachable!("the planner renames the value, and tables and codes ran above")
        }
        Layer::Lstm(_) | Layer::Gru(_) | Layer::Operator(_) => {
            unreachable!("these have several outputs")
        }
    }
}

/// Elements before `axis`, along it, and after it.
fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}
