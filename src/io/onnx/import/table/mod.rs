//! Which operator of the standard becomes what.

mod elementwise;
mod movement;
mod normalization;
mod products;
mod quantized;
mod reduction;
mod spatial;

use super::call::{Built, Call, all};
use super::{layers, unfold};
use crate::error::{Error, Result};
use crate::io::onnx::attribute::Attributes;
use crate::io::onnx::tensor;
use crate::tensor::{DType, Tensor, Value};

/// Makes a layer or an operator of a node.
type Builder = fn(&mut Call<'_>) -> Result<Built>;

/// The domain of ONNX Runtime's own operators.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// Whether the operator is known.
pub(super) fn knows(domain: &str, operator: &str) -> bool {
    (domain.is_empty() && operator == "Constant") || find(domain, operator).is_some() || unfold::knows(domain, operator)
}

/// What a node becomes.
pub(super) fn build(call: &mut Call<'_>) -> Result<Built> {
    match find(call.domain, call.operator) {
        Some(builder) => builder(call),
        None => Err(Error::Unsupported { what: format!("ONNX operator {}", call.operator), way_out: "export the model without it".into() }),
    }
}

fn find(domain: &str, operator: &str) -> Option<Builder> {
    let own = matches!((domain, operator), ("", _) | (MICROSOFT, "QuantizeLinear" | "DequantizeLinear"));
    if !own {
        return None;
    }
    Some(match operator {
        "Abs" | "Neg" | "Ceil" | "Floor" | "Round" | "Sign" | "Sqrt" | "Reciprocal" | "Exp" | "Log" | "Erf" => elementwise::unary,
        "Sin" | "Cos" | "Tan" | "Asin" | "Acos" | "Atan" | "Sinh" | "Cosh" | "Asinh" | "Acosh" | "Atanh" => elementwise::unary,
        "LeakyRelu" | "Elu" | "Selu" | "Celu" | "ThresholdedRelu" | "Sigmoid" | "Tanh" | "HardSigmoid" => elementwise::unary,
        "HardSwish" | "Gelu" | "Softplus" | "Softsign" | "Mish" | "Swish" => elementwise::unary,
        "Relu" => elementwise::relu,
        "Not" | "BitwiseNot" | "IsNaN" | "IsInf" => elementwise::logic,
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "PRelu" | "And" | "Or" | "Xor" | "BitwiseAnd" | "BitwiseOr" => elementwise::binary,
        "BitwiseXor" | "BitShift" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => elementwise::binary,
        "Min" | "Max" | "Sum" | "Mean" => elementwise::variadic,
        "Pow" => elementwise::pow,
        "Where" => elementwise::select,
        "Clip" => elementwise::clip,
        "Shape" => movement::shape,
        "Size" => movement::size,
        "Reshape" => movement::reshape,
        "Flatten" => movement::flatten,
        "Squeeze" => movement::squeeze,
        "Unsqueeze" => movement::unsqueeze,
        "Identity" => movement::identity,
        "Dropout" => movement::dropout,
        "Range" => movement::range,
        "ConstantOfShape" => movement::constant_of_shape,
        "EyeLike" => movement::eye_like,
        "Trilu" => movement::trilu,
        "Transpose" => movement::transpose,
        "Concat" => movement::concat,
        "Split" => movement::split,
        "Slice" => movement::slice,
        "Gather" => movement::gather,
        "GatherElements" => movement::gather_elements,
        "GatherND" => movement::gather_nd,
        "ScatterElements" | "Scatter" => movement::scatter_elements,
        "ScatterND" => movement::scatter_nd,
        "Expand" => movement::expand,
        "Tile" => movement::tile,
        "Pad" => movement::pad,
        "DepthToSpace" => movement::depth_to_space,
        "SpaceToDepth" => movement::space_to_depth,
        "ReverseSequence" => movement::reverse_sequence,
        "OneHot" => movement::one_hot,
        "TopK" => movement::top_k,
        "MatMul" => products::matmul,
        "Gemm" => products::gemm,
        "LSTM" => products::lstm,
        "GRU" => products::gru,
        "Conv" => products::conv,
        "MaxPool" => spatial::max_pool,
        "AveragePool" => spatial::average_pool,
        "LpPool" => spatial::lp_pool,
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => spatial::global_pool,
        "MaxUnpool" => spatial::max_unpool,
        "Softmax" | "LogSoftmax" => normalization::softmax,
        "LayerNormalization" | "RMSNormalization" => normalization::layer_normalization,
        "GroupNormalization" => normalization::group_normalization,
        "InstanceNormalization" => normalization::instance_normalization,
        "BatchNormalization" => normalization::batch_normalization,
        "LpNormalization" => normalization::lp_normalization,
        "MeanVarianceNormalization" => normalization::mean_variance_normalization,
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2" => reduction::reduce,
        "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => reduction::reduce,
        "ArgMax" | "ArgMin" => reduction::arg,
        "CumSum" | "CumProd" => reduction::cumulative,
        "Cast" | "CastLike" => elementwise::cast,
        "Resize" => spatial::resize,
        "Upsample" => spatial::upsample,
        "ConvTranspose" => products::conv_transpose,
        "QuantizeLinear" => quantized::quantize_linear,
        "DequantizeLinear" => quantized::dequantize_linear,
        "DynamicQuantizeLinear" => quantized::dynamic_quantize_linear,
        "MatMulInteger" | "QLinearMatMul" => quantized::matmul_integer,
        "ConvInteger" | "QLinearConv" => quantized::conv_integer,
        _ => return None,
    })
}

/// The value of a Constant.
pub(super) fn constant(attributes: &mut Attributes) -> Result<Value> {
    let one = |length: usize| vec![length];
    let mut values = Vec::new();
    values.extend(attributes.tensor("value")?);
    if let Some(x) = attributes.float("value_float")? {
        values.push(Tensor::new(Vec::new(), vec![x])?.into());
    }
    if let Some(list) = attributes.floats("value_floats")? {
        values.push(Tensor::new(one(list.len()), list)?.into());
    }
    if let Some(x) = attributes.int("value_int")? {
        values.push(Tensor::new(Vec::new(), vec![x])?.into());
    }
    if let Some(list) = attributes.ints("value_ints")? {
        values.push(Tensor::new(one(list.len()), list)?.into());
    }
    match <[Value; 1]>::try_from(values) {
        Ok([value]) => Ok(value),
        Err(values) => Err(attributes.error("value", format!("there are {} values of numbers, one expected", values.len()))),
    }
}

/// The element type that an attribute names by its number.
fn element_type(attributes: &Attributes, name: &str, code: i64) -> Result<DType> {
    tensor::element_type(code, &format!("its value {code}")).map_err(|e| match e {
        Error::Unsupported { what, way_out } => attributes.unsupported(name, what, &way_out),
        e => attributes.error(name, e),
    })
}
