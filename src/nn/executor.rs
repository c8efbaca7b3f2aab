//! Running a model: one plan, one set of buffers, one workspace, kept between calls.

use crate::error::{Error, Result};
use crate::kernels::{ImageLayout, ImageShape, Workspace};
use crate::nn::activation::{add, relu, relu6, softmax};
use crate::nn::plan::{Operand, Plan, Source, Step};
use crate::nn::reorder::{nchw_to_nhwc, nhwc_to_nchw};
use crate::nn::{Layer, Model, Node};
use crate::tensor::{Tensor, Value};

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
/// thread allocates nothing. Results do not depend on the number of threads, nor on the batch that an image came in.
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
/// let x = Value::from(Tensor::new([2], vec![-1.0, 1.0])?);
/// let mut y = Value::from(Tensor::new([2], vec![0.0, 0.0])?);
/// executor.run_into(&[("x", &x)], &mut [("y", &mut y)])?;
/// assert_eq!(y, Value::from(Tensor::new([2], vec![0.0, 1.0])?));
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug)]
pub struct Executor {
    model: Model,
    threads: usize,
    plan: Option<Plan>,
    buffers: Vec<Vec<f32>>,
    workspace: Workspace,
    // Position of each of the model's inputs in the list that the caller gave.
    positions: Vec<usize>,
}

impl Executor {
    /// An executor that may use all threads of the caller's rayon pool (one without the feature `parallel`).
    pub fn new(model: &Model) -> Self {
        #[cfg(feature = "parallel")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "parallel"))]
        let threads = 1;
        Executor { model: model.clone(), threads, plan: None, buffers: Vec::new(), workspace: Workspace::default(), positions: Vec::new() }
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

    fn execute(&mut self, inputs: &[(&str, &Value)], mut tap: Option<&mut Callback<'_>>) -> Result<()> {
        self.accept(inputs)?;
        let Executor { model, threads, plan, buffers, workspace, positions } = self;
        let plan = plan.as_ref().expect("accept made one");
        let given = Given { inputs, positions };
        if let Some(tap) = &mut tap {
            for input in model.inputs() {
                let value = inputs.iter().find(|(name, _)| *name == input.name()).map(|(_, value)| *value).expect("accept found it");
                tap(&Tap { edge: model.edge_name(input.edge()), node: None, value })?;
            }
        }
        for step in &plan.steps {
            let node = match step {
                Step::Reorder { from, to, dims, to_channels_last } => {
                    let mut output = std::mem::take(&mut buffers[*to]);
                    let length = dims.iter().product();
                    let reorder = if *to_channels_last { nchw_to_nhwc } else { nhwc_to_nchw };
                    let done = reorder(given.f32(*from, length, buffers), *dims, &mut output[..length]);
                    buffers[*to] = output;
                    done?;
                    continue;
                }
                Step::Run { node: index, inputs: operands, to } => {
                    let node = &model.nodes()[*index];
                    let length = plan.places[node.outputs[0].index].as_ref().expect("planned").shape.elements();
                    let mut output = std::mem::take(&mut buffers[*to]);
                    let input = |i: usize| given.f32(operands[i].source, operands[i].shape.elements(), buffers);
                    let done = run(&node.layer, operands, input, &mut output[..length], workspace, *threads);
                    buffers[*to] = output;
                    done.map_err(|e| e.in_layer(&node.name))?;
                    node
                }
                Step::Rename { node, .. } => &model.nodes()[*node],
            };
            if let Some(tap) = &mut tap {
                let edge = node.outputs[0];
                let place = plan.places[edge.index].as_ref().expect("planned");
                let value = given.value(place.source, &place.shape, place.is_channels_last(), buffers)?;
                tap(&Tap { edge: model.edge_name(edge), node: Some(node), value: &value })?;
            }
        }
        Ok(())
    }

    /// Checks the inputs and makes the plan, unless the last one fits.
    fn accept(&mut self, inputs: &[(&str, &Value)]) -> Result<()> {
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
        if self.plan.as_ref().is_some_and(|plan| plan.fits(self.positions.iter().map(|&p| inputs[p].1))) {
            return Ok(());
        }
        let plan = Plan::new(&self.model, self.positions.iter().map(|&p| inputs[p].1.shape().clone()).collect())?;
        self.buffers.resize_with(plan.buffers.len().max(self.buffers.len()), Vec::new);
        for (buffer, &length) in self.buffers.iter_mut().zip(&plan.buffers) {
            if buffer.len() < length {
                buffer.resize(length, 0.0);
            }
        }
        self.plan = Some(plan);
        Ok(())
    }

    fn output(&self, index: usize, inputs: &[(&str, &Value)]) -> Result<Value> {
        let plan = self.plan.as_ref().expect("a run came before");
        let shape = &plan.places[self.model.outputs()[index].edge().index].as_ref().expect("planned").shape;
        Given { inputs, positions: &self.positions }.value(plan.outputs[index], shape, false, &self.buffers)
    }

    fn output_into(&self, index: usize, inputs: &[(&str, &Value)], value: &mut Value) -> Result<()> {
        let plan = self.plan.as_ref().expect("a run came before");
        let shape = &plan.places[self.model.outputs()[index].edge().index].as_ref().expect("planned").shape;
        let copied = value.shape() == shape
            && match (&mut *value, plan.outputs[index]) {
                (Value::F32(tensor), Source::Buffer(buffer)) => {
                    tensor.as_mut_slice().copy_from_slice(&self.buffers[buffer][..shape.elements()]);
                    true
                }
                (value, Source::Input(input)) => value.copy_elements(inputs[self.positions[input]].1),
                _ => false,
            };
        if !copied {
            *value = self.output(index, inputs)?;
        }
        Ok(())
    }
}

/// What a tap calls.
type Callback<'a> = dyn FnMut(&Tap<'_>) -> Result<()> + 'a;

/// The caller's inputs, found by the model's numbering.
struct Given<'a> {
    inputs: &'a [(&'a str, &'a Value)],
    positions: &'a [usize],
}

impl Given<'_> {
    fn f32<'s>(&'s self, source: Source, length: usize, buffers: &'s [Vec<f32>]) -> &'s [f32] {
        match source {
            Source::Buffer(buffer) => &buffers[buffer][..length],
            Source::Input(i) => match self.inputs[self.positions[i]].1 {
                Value::F32(tensor) => tensor.as_slice(),
                _ => unreachable!("the builder checked that this edge is f32, and `accept` that the input is what was declared"),
            },
        }
    }

    /// A row-major copy of a value (an input keeps its data).
    fn value(&self, source: Source, shape: &crate::tensor::Shape, channels_last: bool, buffers: &[Vec<f32>]) -> Result<Value> {
        if let Source::Input(i) = source {
            return self.inputs[self.positions[i]].1.reshape(shape.dims());
        }
        let data = self.f32(source, shape.elements(), buffers);
        let data = match *shape.dims() {
            [n, c, h, w] if channels_last => {
                let mut row_major = vec![0.0; data.len()];
                nhwc_to_nchw(data, [n, c, h, w], &mut row_major)?;
                row_major
            }
            _ => data.to_vec(),
        };
        Tensor::from_shape(shape.clone(), data).map(Value::F32)
    }
}

/// Runs one layer on slices whose lengths the planner worked out.
fn run<'s>(
    layer: &Layer,
    operands: &[Operand],
    input: impl Fn(usize) -> &'s [f32],
    output: &mut [f32],
    workspace: &mut Workspace,
    threads: usize,
) -> Result<()> {
    let Operand { shape, channels_last, .. } = &operands[0];
    let x = input(0);
    let image = || match *shape.dims() {
        [n, _, h, w] => Ok(ImageShape { n, h, w, layout: if *channels_last { ImageLayout::Nhwc } else { ImageLayout::Nchw } }),
        _ => Err(Error::shape("input", "[n, c, h, w]", shape.dims())),
    };
    let nhwc = || match *shape.dims() {
        [n, c, h, w] => Ok([n, h, w, c]),
        _ => Err(Error::shape("input", "[n, c, h, w]", shape.dims())),
    };
    let rows =
        |in_features: usize| shape.elements().checked_div(in_features).unwrap_or_else(|| shape.dims().iter().rev().skip(1).product());
    match layer {
        Layer::Conv2d(conv) => conv.forward(x, image()?, output, workspace, threads),
        Layer::QuantizedConv2d(conv) => conv.forward(x, image()?, output, workspace, threads),
        Layer::Linear(linear) => linear.forward(x, rows(linear.in_features()), output, threads),
        Layer::QuantizedLinear(linear) => linear.forward(x, rows(linear.in_features()), output, workspace, threads),
        Layer::BatchNorm2d(norm) => norm.forward(x, output),
        Layer::Relu => relu(x, output),
        Layer::Relu6 => relu6(x, output),
        Layer::MaxPool2d(pool) => pool.forward(x, nhwc()?, output),
        Layer::AvgPool2d(pool) => pool.forward(x, nhwc()?, output),
        Layer::GlobalAvgPool2d(pool) => pool.forward(x, nhwc()?, output),
        Layer::Add => add(x, input(1), output),
        Layer::Softmax { axis } => softmax(x, shape.around(*axis)?, output),
        Layer::Flatten { .. } => unreachable!("the planner renames the value instead"),
    }
}
