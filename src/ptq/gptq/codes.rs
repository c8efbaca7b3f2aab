//! Int8 weights as a weight format has them, and back.

use crate::error::{Error, Result};
use crate::quant::{Grouping, Levels, PackedCodes, QuantizedWeights, ScaleFormat, Scales, StoredLevels, WeightFormat, WeightParts, Zeros};
use crate::tensor::{Granularity, QParams, QuantizedTensor};

/// Bits of codes up to `qmax`.
fn bits(params: &QParams) -> u32 {
    (i32::BITS - params.qmax().leading_zeros()).max(1) + 1
}

/// # Errors
/// [`Error::Unsupported`] for scales along another axis than the first, and zero points.
pub(super) fn from_int8(codes: &QuantizedTensor<i8>) -> Result<QuantizedWeights> {
    let (params, shape) = (codes.params(), codes.shape());
    let grouping = match params.granularity() {
        Granularity::PerTensor => Grouping::Tensor,
        Granularity::PerChannel { axis: 0 } => Grouping::Channel,
        other => return Err(unsupported(format!("codes with scales {other:?}"))),
    };
    if params.zero_points().iter().any(|&zero_point| zero_point != 0) {
        return Err(unsupported("codes with zero points".into()));
    }
    let bits = bits(params);
    let format = WeightFormat::new(Levels::Int(bits), grouping)?.with_scale_format(ScaleFormat::F32)?;
    let mask = (1u32 << bits) - 1;
    let parts = WeightParts {
        codes: PackedCodes::new(bits, codes.codes().into_iter().map(|code| code as u32 & mask))?,
        scales: Scales::F32(params.scales().to_vec()),
        zeros: Zeros::None,
        levels: StoredLevels::None,
        kept: None,
    };
    QuantizedWeights::from_parts(format, shape.clone(), parts)
}

fn unsupported(what: String) -> Error {
    Error::Unsupported {
        what: format!("fitting {what} to samples"),
        way_out: "use symmetric weights, per tensor or per output channel".into(),
    }
}

/// Codes of the granularity of `rounded`. Where a scale was fitted to nothing (a channel of zeros), those of `rounded` stay.
pub(super) fn to_int8(weights: &QuantizedWeights, rounded: &QuantizedTensor<i8>) -> Result<QuantizedTensor<i8>> {
    let params = rounded.params();
    let (mut codes, before) = (weights.codes(), rounded.codes());
    let mut scales = params.scales().to_vec();
    for (group, scale) in scales.iter_mut().enumerate() {
        let fitted = weights.scales().at(group);
        match fitted > 0.0 && fitted.is_finite() {
            true => *scale = fitted,
            false => weights.group(group).for_each(|index| codes[index] = before[index]),
        }
    }
    let zero_points = vec![0; scales.len()];
    let params = QParams::of_any_axis(scales, zero_points, params.granularity(), -params.qmax() - 1, params.qmax())?;
    QuantizedTensor::from_codes(&codes, weights.shape().clone(), params)
}
