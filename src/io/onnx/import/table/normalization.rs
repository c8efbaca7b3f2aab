//! Softmax and normalizations.

use super::{Built, Call, all, layers};
use crate::error::Result;
use crate::nn::operator::{
    BatchNormalization, GroupNormalization, LayerNormalization, LpNormalization, MeanVarianceNormalization, Softmax,
};
use crate::tensor::DType;

pub(super) fn softmax(call: &mut Call<'_>) -> Result<Built> {
    // Until opset 12 all axes from this one on were taken together.
    let flattens = call.opset < 13;
    let axis = call.attributes.int_or("axis", if flattens { 1 } else { -1 })?;
    let softmax = if call.operator == "LogSoftmax" { Softmax::log(axis) } else { Softmax::new(axis) };
    all(if flattens { softmax.flattened() } else { softmax })
}

pub(super) fn layer_normalization(call: &mut Call<'_>) -> Result<Built> {
    let (axis, epsilon) = (call.attributes.int_or("axis", -1)?, call.attributes.float_or("epsilon", 1e-5)?);
    let stash = call.attributes.int_or("stash_type", 1)?;
    if call.operator == "RMSNormalization" {
        return all(LayerNormalization::rms(axis, epsilon));
    }
    let norm = LayerNormalization::new(axis, epsilon);
    all(if call.outputs > 1 { norm.with_statistics(super::element_type(&call.attributes, "stash_type", stash)?) } else { norm })
}

pub(super) fn group_normalization(call: &mut Call<'_>) -> Result<Built> {
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    // The sums are taken in f32 at least, which is what it asks for.
    call.attributes.discard("stash_type");
    let groups = call.attributes.int_or("num_groups", 0)?;
    let groups = usize::try_from(groups).map_err(|_| call.attributes.error("num_groups", format!("it is {groups}")))?;
    let norm = GroupNormalization::new(groups, epsilon);
    all(if call.opset < 21 { norm.with_scale_per_group() } else { norm })
}

pub(super) fn instance_normalization(call: &mut Call<'_>) -> Result<Built> {
    all(GroupNormalization::instance(call.attributes.float_or("epsilon", 1e-5)?))
}

pub(super) fn batch_normalization(call: &mut Call<'_>) -> Result<Built> {
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    let momentum = call.attributes.float_or("momentum", 0.9)?;
    let training = call.attributes.flag_or("training_mode", false)?;
    // Until opset 8 statistics could be taken for each pixel too, which no exporter did.
    if !call.attributes.flag_or("spatial", true)? {
        return Err(call.attributes.unsupported("spatial", "statistics for each pixel", "export the model in a newer opset"));
    }
    if call.dtype(0) == Some(DType::F32)
        && call.rank(0) == Some(4)
        && call.outputs == 1
        && !training
        && let Some(norm) = layers::batch_norm(call, epsilon)?
    {
        return Ok(Built::of(norm, &[0]));
    }
    let norm = BatchNormalization::new(epsilon);
    all(if training { norm.in_training(momentum) } else { norm })
}

pub(super) fn lp_normalization(call: &mut Call<'_>) -> Result<Built> {
    all(LpNormalization::new(call.attributes.int_or("axis", -1)?, call.attributes.int_or("p", 2)?)?)
}

pub(super) fn mean_variance_normalization(call: &mut Call<'_>) -> Result<Built> {
    all(MeanVarianceNormalization::new(call.attributes.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3])))
}
