//! Operators that take axes together, and those that walk along one.

use super::{Built, Call, all};
use crate::error::Result;
use crate::nn::operator::{Arg, Cumulative, Reduce, Reduction};

pub(super) fn reduce(call: &mut Call<'_>) -> Result<Built> {
    let reduction = match call.operator {
        "ReduceSum" => Reduction::Sum,
        "ReduceMean" => Reduction::Mean,
        "ReduceMax" => Reduction::Max,
        "ReduceMin" => Reduction::Min,
        "ReduceProd" => Reduction::Prod,
        "ReduceL1" => Reduction::L1,
        "ReduceL2" => Reduction::L2,
        "ReduceLogSum" => Reduction::LogSum,
        "ReduceLogSumExp" => Reduction::LogSumExp,
        _ => Reduction::SumSquare,
    };
    let attributes = &mut call.attributes;
    let reduce = Reduce::new(reduction)
        .with_kept_axes(attributes.flag_or("keepdims", true)?)
        .with_empty_as_none(attributes.flag_or("noop_with_empty_axes", false)?);
    all(match attributes.ints("axes")? {
        Some(axes) => reduce.with_axes(axes),
        None => reduce,
    })
}

pub(super) fn arg(call: &mut Call<'_>) -> Result<Built> {
    let axis = call.attributes.int_or("axis", 0)?;
    let arg = if call.operator == "ArgMin" { Arg::min(axis) } else { Arg::max(axis) };
    let keeps = call.attributes.flag_or("keepdims", true)?;
    all(arg.with_kept_axis(keeps).with_last_of_equals(call.attributes.flag_or("select_last_index", false)?))
}

pub(super) fn cumulative(call: &mut Call<'_>) -> Result<Built> {
    let cumulative = if call.operator == "CumProd" { Cumulative::product() } else { Cumulative::sum() };
    let exclusive = call.attributes.flag_or("exclusive", false)?;
    all(cumulative.with_exclusive(exclusive).with_reverse(call.attributes.flag_or("reverse", false)?))
}
