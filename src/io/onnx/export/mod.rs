//! From a [`Model`] to a file: its nodes, spelled as the standard spells them.
//!
//! What has no operator of its own in the standard is written as those that together give the same numbers.
//!
//! | file | writes |
//! |---|---|
//! | `writer` | nodes, tensors and names |
//! | `layers` | float layers |
//! | `dynamic` | int8 layers that quantize their input: DynamicQuantizeLinear, ConvInteger, MatMulInteger |
//! | `codes` | integer models: layers on floats between QuantizeLinear and DequantizeLinear |
//! | `weights` | layers whose weights alone are quantized: DequantizeLinear in blocks, or Gather from levels |
//! | `operators` | plain operators, and the parameters that a version has as inputs |

mod codes;
mod dynamic;
mod layers;
mod operators;
mod weights;
mod writer;

use std::path::Path;

use prost::Message;

use super::schema::{
    DimensionProto, GraphProto, ModelProto, OperatorSetIdProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::tensor::element_code;
use crate::error::{Error, Result};
use crate::kernels::RangeOf;
use crate::nn::weight_only::Activations;
use crate::nn::{Dim, Layer, LayerKind, Model, Precision, shapes, shapes_for};
use crate::tensor::{DType, Shape, Value};
use writer::Writer;

/// The versions of the standard in which models can be written.
const OPSETS: std::ops::RangeInclusive<i64> = 13..=21;

/// What becomes of the inputs of products of weights that alone are quantized.
const FLOATS: &str = "inputs multiplied as floats, which are quantized here";

/// The bytes that protobuf lets a message have.
const LIMIT: usize = i32::MAX as usize;

/// A model on its way to an ONNX file.
///
/// Float layers become the operators that they came from. An integer model ([`quantize_static`](crate::quantize_static)) is written
/// in QDQ form: every value in codes is followed by a DequantizeLinear and comes out of a QuantizeLinear, weights are int8
/// with one scale per channel, biases int32, so that a runtime can see its integer kernels in it. A layer that quantizes its input
/// at run time becomes DynamicQuantizeLinear, ConvInteger or MatMulInteger, and the product with both scales. DynamicQuantizeLinear
/// has one range for the whole tensor, and so has a model made with [`RangeOf::Tensor`], which the file then equals;
/// [`quantize_dynamic`](crate::quantize_dynamic) by itself has one per image or row: of a batch of one image the results are the same, of a
/// larger one they differ as far as the ranges of its images do ([`compare_ranges`](crate::eval::compare_ranges) says what they were worth). Quantized
/// weights are constants in codes that DequantizeLinear (in blocks, from opset 21 on) or a look-up makes floats of; activations that such a
/// layer would quantize in its products stay floats. So do those of a recurrent layer in int8: the standard's LSTM and GRU multiply
/// floats, and get theirs from a DequantizeLinear of the layer's codes; its weights that alone are quantized are written as the floats that
/// they stand for. A transposed convolution in int8 has the same codes there, but
/// what they stand for is multiplied as floats, whose sums are rounded.
///
/// Reading a file that was written gives a model with the same outputs, bit for bit, up to what the last paragraph says.
///
/// ```
/// # use lowprec::nn::{Dim, Linear, Model};
/// # use lowprec::{DType, Tensor};
/// # let mut net = Model::builder();
/// # let x = net.input("x", DType::F32, &[Dim::Any, Dim::Fixed(2)])?;
/// # let x = net.add("fc", Linear::new(Tensor::new([1, 2], vec![0.5, -1.0])?, None)?, &[x])?;
/// # net.output("y", x)?;
/// # let model = net.build()?;
/// use lowprec::onnx::{self, Export};
/// let bytes = Export::new(&model).with_opset(17)?.to_bytes()?; // or `onnx::save("model.onnx", &model)`
/// let again = onnx::from_bytes(&bytes)?;
/// # let x = Tensor::new([1, 2], vec![1.0, 2.0])?;
/// assert_eq!(again.forward(&x)?, model.forward(&x)?);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is written until `to_bytes` or `save`"]
pub struct Export<'m> {
    model: &'m Model,
    opset: Option<i64>,
    inputs: Option<Vec<Value>>,
}

impl<'m> Export<'m> {
    /// Of this model, in the least version from 13 that has all its operators.
    pub fn new(model: &'m Model) -> Self {
        Export { model, opset: None, inputs: None }
    }

    /// In this version of the standard's operators.
    ///
    /// # Errors
    /// [`Error::Parameter`] for one outside 13 to 21.
    pub fn with_opset(self, opset: i64) -> Result<Self> {
        match OPSETS.contains(&opset) {
            true => Ok(Export { opset: Some(opset), ..self }),
            false => Err(Error::parameter("opset", opset, format!("must be from {} to {}", OPSETS.start(), OPSETS.end()))),
        }
    }

    /// With values that the model's inputs can have, in its order: they tell the number of axes of every value, where lengths that
    /// each run decides can't simply be tried.
    pub fn with_inputs(self, inputs: Vec<Value>) -> Self {
        Export { inputs: Some(inputs), ..self }
    }

    /// Layers whose outputs differ from this model's, and why: by name, in the order in which they run. What others make of the same
    /// inputs differs by the rounding of floats alone.
    pub fn differences(&self) -> Vec<(&'m str, &'static str)> {
        let of = |layer: &Layer| match layer {
            Layer::Lstm(_) | Layer::Gru(_) if layer.precision() == Precision::Int8 => {
                Some("inputs and states multiplied as floats, which are quantized here")
            }
            layer if layer.input_range() == Some(RangeOf::Row) => Some(match layer.kind() {
                LayerKind::Linear => "one range for all rows, where each has its own here",
                _ => "one range for the batch, where each image has its own here",
            }),
            Layer::WeightOnlyConv2d(conv) if conv.activations() != Activations::Float => Some(FLOATS),
            Layer::WeightOnlyLinear(linear) if linear.activations() != Activations::Float => Some(FLOATS),
            _ => None,
        };
        self.model.nodes().iter().filter_map(|node| Some((node.name(), of(node.layer())?))).collect()
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a layer or operator that the version has no words for, inside an [`Error::Layer`], and for a model
    /// of 2 GB and more; those of shapes that don't fit.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let model = self.model;
        if model.bytes() >= LIMIT {
            return Err(Error::Unsupported {
                what: format!("an ONNX file of {} bytes", model.bytes()),
                way_out: format!("at most {LIMIT} fit one message: save it with `io::saved`"),
            });
        }
        let mut writer = Writer::new(model, self.version()?, self.ranks()?);
        for (edge, value) in model.constants() {
            writer.tensor(model.edge_name(*edge), value);
        }
        for node in model.nodes() {
            let done = match node.layer() {
                Layer::Operator(operator) => operators::operator(&mut writer, node, operator),
                layer if dynamic::is_dynamic(layer) => dynamic::layer(&mut writer, node),
                Layer::StaticConv2d(_) | Layer::StaticLinear(_) => codes::layer(&mut writer, node),
                layer if layer.stored_weights().is_some() => codes::around(&mut writer, node, weights::layer),
                _ => codes::around(&mut writer, node, layers::layer),
            };
            done.map_err(|e| e.in_layer(node.name()))?;
        }
        let fixed = model.inputs().iter().all(|input| input.dims().iter().all(|dim| matches!(dim, Dim::Fixed(_))));
        let shapes = if fixed { Some(self.known_shapes()?) } else { None };
        let inputs = model.inputs().iter().map(|input| declared(input.name(), input.dtype(), input.dims()));
        let outputs = model.outputs().iter().map(|output| {
            let edge = output.edge();
            let dims: Vec<Dim> = match &shapes {
                Some(shapes) => shapes[edge.index].dims().iter().map(|&length| Dim::Fixed(length)).collect(),
                None => vec![Dim::Any; writer.ranks[edge.index]],
            };
            (output.name(), edge, declared(output.name(), model.edge_type(edge), &dims))
        });
        let (inputs, outputs): (Vec<_>, Vec<_>) = (inputs.collect(), outputs.collect());
        // An output is a value of its own name; one with another name, or that is an input, is copied.
        for (name, edge, _) in &outputs {
            writer.copy_output(name, *edge)?;
        }
        let version = writer.opset;
        let graph = GraphProto {
            node: writer.nodes,
            name: Some("lowprec".into()),
            initializer: writer.tensors,
            sparse_initializer: Vec::new(),
            input: inputs,
            output: outputs.into_iter().map(|(.., info)| info).collect(),
        };
        let opset_import = vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(version) }];
        // The first version of the format that knows these operators.
        let ir_version = Some(match version {
            ..=14 => 7,
            15..=18 => 8,
            19..=20 => 9,
            _ => 10,
        });
        Ok(ModelProto { ir_version, opset_import, graph: Some(graph), functions: Vec::new() }.encode_to_vec())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of [`Export::to_bytes`], and [`Error::Write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        std::fs::write(path, self.to_bytes()?).map_err(|source| Error::Write { path: path.display().to_string(), source })
    }

    /// The version asked for, or the least that will do.
    fn version(&self) -> Result<i64> {
        let mut least = *OPSETS.start();
        for node in self.model.nodes() {
            least = least.max(node.layer().stored_weights().map_or(0, weights::least_opset));
            let Layer::Operator(operator) = node.layer() else { continue };
            let dtype = node.inputs().first().copied().flatten().map_or(DType::F32, |edge| self.model.edge_type(edge));
            let spoken = operators::opsets(operator, node.inputs().len(), dtype);
            if *spoken.end() < *OPSETS.start() || *spoken.start() > self.opset.unwrap_or(*OPSETS.end()) {
                let what = format!("{} in opset {}", operator.name(), self.opset.unwrap_or(*OPSETS.end()));
                let way_out = format!("that operator is spelled so in {} to {}", spoken.start(), spoken.end());
                return Err(Error::Unsupported { what, way_out }.in_layer(node.name()));
            }
            least = least.max(operators::preferred(operator, &spoken));
        }
        Ok(self.opset.unwrap_or(least))
    }

    fn ranks(&self) -> Result<Vec<usize>> {
        Ok(self.known_shapes()?.iter().map(Shape::rank).collect())
    }

    /// Shapes of all values for some inputs that the model can have.
    fn known_shapes(&self) -> Result<Vec<Shape>> {
        let of = |any: &dyn Fn(usize) -> usize| {
            let lengths = |dims: &[Dim]| -> Vec<usize> {
                dims.iter().enumerate().map(|(axis, dim)| if let Dim::Fixed(length) = dim { *length } else { any(axis) }).collect()
            };
            let inputs = self.model.inputs().iter().map(|input| Shape::new(lengths(input.dims()))).collect::<Result<Vec<_>>>()?;
            shapes(self.model, &inputs)
        };
        if let Some(given) = &self.inputs {
            if given.len() != self.model.inputs().len() {
                return Err(Error::length("list of inputs", self.model.inputs().len(), given.len()));
            }
            return shapes_for(self.model, given);
        }
        // A batch of one, and images or sequences of usual lengths.
        let mut last = None;
        for length in [1, 2, 32, 64, 224, 16, 128, 320] {
            match of(&|axis| if axis == 0 { 1 } else { length }) {
                Ok(shapes) => return Ok(shapes),
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map_or_else(String::new, |error| error.to_string());
        Err(Error::Unsupported {
            what: format!("an export without values of the inputs ({reason})"),
            way_out: "give some that the model can have with `Export::with_inputs`".into(),
        })
    }
}

/// Writes the model to an ONNX file: [`Export`] with its choices as they are.
///
/// # Errors
/// Those of [`Export::save`].
pub fn save(path: impl AsRef<Path>, model: &Model) -> Result<()> {
    Export::new(model).save(path)
}

fn declared(name: &str, dtype: DType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(length) => DimensionProto { dim_value: Some(*length as i64), dim_param: None },
        Dim::Any => DimensionProto { dim_value: None, dim_param: Some(format!("{name}_{axis}")) },
    };
    let shape = TensorShapeProto { dim: dims.iter().enumerate().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(element_code(dtype)), shape: Some(shape) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
