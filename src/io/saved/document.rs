//! The JSON of a file's metadata, field by field.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::weights::Weights;

/// A graph.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub inputs: Vec<InputEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<ConstantEntry>,
    pub nodes: Vec<NodeEntry>,
    pub outputs: Vec<OutputEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grids: Vec<(String, Grid)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    pub name: String,
    pub dtype: String,
    pub dims: Vec<Option<usize>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstantEntry {
    pub name: String,
    /// What its bytes are, for elements that the file's tensors can't have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
}

/// What a list of bytes holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packed {
    pub dtype: String,
    pub dims: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    pub name: String,
    pub layer: LayerEntry,
    /// Absent: one value, the first of the node before it, or of the model's inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<Vec<Option<String>>>,
    /// Absent: one value, of the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputEntry {
    pub name: String,
    pub value: String,
}

/// A layer; one kind more is one variant more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum LayerEntry {
    Conv2d(Geometry),
    ConvTranspose2d(Geometry),
    Linear,
    Embedding,
    QuantizedConv2d {
        geometry: Geometry,
        codes: Codes,
        #[serde(default, skip_serializing_if = "is_default")]
        input: Rule,
    },
    QuantizedConvTranspose2d {
        geometry: Geometry,
        codes: Codes,
        #[serde(default, skip_serializing_if = "is_default")]
        input: Rule,
    },
    QuantizedLinear {
        codes: Codes,
        #[serde(default, skip_serializing_if = "is_default")]
        input: Rule,
    },
    QuantizedEmbedding {
        codes: Codes,
    },
    StaticConv2d {
        geometry: Geometry,
        codes: Codes,
        grids: Static,
    },
    StaticLinear {
        codes: Codes,
        grids: Static,
    },
    Lstm {
        options: Attributes,
        coupled: bool,
        directions: Vec<[Projected; 2]>,
    },
    Gru {
        options: Attributes,
        reset_after: bool,
        directions: Vec<[Projected; 3]>,
    },
    BatchNorm2d {
        epsilon: Real,
    },
    WeightOnlyConv2d {
        geometry: Geometry,
        weights: Weights,
        /// Whether activations are multiplied as they are, and not as bytes.
        floats: bool,
        /// Whether each group of those bytes has its own range.
        #[serde(default, skip_serializing_if = "is_default")]
        groups: bool,
    },
    WeightOnlyLinear {
        weights: Weights,
        floats: bool,
        #[serde(default, skip_serializing_if = "is_default")]
        groups: bool,
    },
    WeightOnlyEmbedding {
        weights: Weights,
    },
    Relu,
    Relu6,
    MaxPool2d(Window),
    AvgPool2d(Window),
    GlobalAvgPool2d,
    Add,
    Flatten {
        axis: usize,
    },
    Softmax {
        axis: usize,
    },
    MaskedSoftmax {
        scale: Real,
    },
    QuantizedAdd {
        grids: [Grid; 3],
        range: (u8, u8),
    },
    QuantizedMul {
        grids: [Grid; 3],
        range: (u8, u8),
    },
    CodeTable {
        name: String,
    },
    QuantizedMaxPool(Attributes),
    QuantizedAvgPool {
        pool: Attributes,
        grids: [Grid; 2],
    },
    QuantizedGlobalAvgPool {
        grids: [Grid; 2],
    },
    Operator {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opset: Option<i64>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        attributes: Attributes,
    },
}

/// Where the windows of a convolution lie; its channels are those of its weight. What is absent is 1, and padding 0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    #[serde(default = "ones", skip_serializing_if = "are_ones")]
    pub stride: [usize; 2],
    /// Top, left, bottom, right, or the name of a rule.
    #[serde(default, skip_serializing_if = "is_default")]
    pub padding: Pads,
    #[serde(default = "ones", skip_serializing_if = "are_ones")]
    pub dilation: [usize; 2],
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub groups: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub output_padding: [usize; 2],
}

/// Rows and columns around an image, or the rule that makes them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "padding is four numbers, `same_upper` or `same_lower`")]
pub enum Pads {
    Fixed([usize; 4]),
    Same(Same),
}

impl Default for Pads {
    fn default() -> Self {
        Pads::Fixed([0; 4])
    }
}

/// Which end gets an odd one.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Same {
    SameUpper,
    SameLower,
}

/// Where the windows of a pooling lie.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    #[serde(default, skip_serializing_if = "is_default")]
    pub padding: [usize; 4],
    #[serde(default = "ones", skip_serializing_if = "are_ones")]
    pub dilation: [usize; 2],
    #[serde(default, skip_serializing_if = "is_default")]
    pub ceil_mode: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub count_include_pad: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn ones() -> [usize; 2] {
    [1, 1]
}

fn are_ones(value: &[usize; 2]) -> bool {
    *value == [1, 1]
}

fn eight() -> u32 {
    8
}

fn is_eight(bits: &u32) -> bool {
    *bits == 8
}

fn least() -> i32 {
    -127
}

fn is_least(code: &i32) -> bool {
    *code == least()
}

fn most() -> i32 {
    127
}

fn is_most(code: &i32) -> bool {
    *code == most()
}

fn all() -> (u8, u8) {
    (0, 255)
}

fn are_all(range: &(u8, u8)) -> bool {
    *range == all()
}

/// What the codes of a weight are; absent are 8 bits, and the codes -127 to 127.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codes {
    #[serde(default = "eight", skip_serializing_if = "is_eight")]
    pub bits: u32,
    #[serde(default = "least", skip_serializing_if = "is_least")]
    pub qmin: i32,
    #[serde(default = "most", skip_serializing_if = "is_most")]
    pub qmax: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// Whether there are zero points.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zeros: bool,
    /// The shape, where codes are packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<usize>>,
}

/// How an input becomes codes at run time; absent are the codes 0 to 255, and what is false.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    #[serde(skip_serializing_if = "is_default")]
    pub qmin: i32,
    #[serde(skip_serializing_if = "is_last")]
    pub qmax: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub symmetric: bool,
    /// Whether NaN and infinities are taken, and not refused.
    #[serde(skip_serializing_if = "is_default")]
    pub saturates: bool,
    /// Whether there is one range for the whole tensor, and not one for each image or row.
    #[serde(skip_serializing_if = "is_default")]
    pub of_tensor: bool,
}

impl Default for Rule {
    fn default() -> Self {
        Rule { qmin: 0, qmax: 255, symmetric: false, saturates: false, of_tensor: false }
    }
}

fn is_last(code: &i32) -> bool {
    *code == 255
}

/// A product of a recurrent layer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Projected {
    Float,
    Int8 {
        codes: Codes,
        #[serde(default, skip_serializing_if = "is_default")]
        input: Rule,
    },
    WeightOnly {
        weights: Weights,
        #[serde(default, skip_serializing_if = "is_default")]
        floats: bool,
        #[serde(default, skip_serializing_if = "is_default")]
        groups: bool,
    },
}

/// Grids of a layer from codes to codes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Static {
    /// Absent: that of the value which it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Grid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Grid>,
    pub output: Written,
}

/// What such a layer writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Written {
    Codes {
        /// Absent: that of the value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grid: Option<Grid>,
        #[serde(default = "all", skip_serializing_if = "are_all")]
        range: (u8, u8),
    },
    Float {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clamp: Option<(Real, Real)>,
        relu: bool,
    },
}

/// What u8 codes stand for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    pub scale: Real,
    #[serde(default, skip_serializing_if = "is_default")]
    pub zero_point: u8,
}

/// Parameters by the standard's names for them.
pub type Attributes = BTreeMap<String, Parameter>;

/// The value of a parameter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Parameter {
    Int(i64),
    Float(Real),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<Real>),
    Texts(Vec<String>),
    Type(String),
    /// A tensor's own: its value is in `{node}.{attribute}`.
    Tensor(Stored),
}

/// How a value is held by the tensor of the file that has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// What its bytes are, for elements that the file's tensors can't have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
}

/// A number of f32 that keeps its bits, but for those of NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Real(pub f32);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written64 {
    Number(f64),
    Name(String),
}

impl Serialize for Real {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.0.is_finite() {
            return serializer.collect_str(&self.0);
        }
        // The fewest digits that tell the f32; all that its f64 has, where those are read back as another number.
        let short = self.0.to_string().parse::<f64>().ok().filter(|short| (*short as f32).to_bits() == self.0.to_bits());
        serializer.serialize_f64(short.unwrap_or(self.0.into()))
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written64::deserialize(deserializer)? {
            Written64::Number(x) => Ok(Real(x as f32)),
            Written64::Name(name) => match name.as_str() {
                "NaN" => Ok(Real(f32::NAN)),
                "inf" => Ok(Real(f32::INFINITY)),
                "-inf" => Ok(Real(f32::NEG_INFINITY)),
                _ => Err(serde::de::Error::custom(format!("`{name}` is no number"))),
            },
        }
    }
}
