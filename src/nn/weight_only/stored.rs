//! Weights in the form in which they are multiplied.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::kernels::{self, GroupScales, LowBit, PackedLowBit};
use crate::num::{bf16, f16};
use crate::quant::{Levels, PackedCodes, QuantizedWeights, ScaleFormat, Scales, StoredLevels, WeightFormat, WeightParts, Zeros};
use crate::tensor::{Shape, Tensor};

/// Quantized weights of a layer, `[rows, ..]`, held once: packed for the kernels that multiply codes where the format allows it, else
/// as they are stored in files. Clones share them.
#[derive(Clone)]
pub struct StoredWeights {
    form: Form,
}

#[derive(Clone)]
enum Form {
    Packed(Arc<Packed>),
    Plain(Arc<QuantizedWeights>),
}

struct Packed {
    panels: PackedLowBit,
    format: WeightFormat,
    shape: Shape,
    /// Where the panels hold them in another format.
    scales: Option<Scales>,
    levels: StoredLevels,
}

impl StoredWeights {
    /// Packs the weights for products with rows of activations, if a kernel multiplies codes of their format.
    ///
    /// # Errors
    /// Those of [`PackedLowBit::pack`], which weights that were quantized can't meet.
    pub fn for_products(weights: QuantizedWeights) -> Result<Self> {
        match pack(&weights)? {
            None => Ok(StoredWeights::as_stored(weights)),
            Some(panels) => {
                let (format, shape, WeightParts { scales, levels, .. }) = weights.into_parts();
                let kept = !matches!(scales, Scales::F32(_) | Scales::F16(_) | Scales::Bf16(_)) || levels_step(&format) != 1.0;
                let scales = kept.then_some(scales);
                Ok(StoredWeights { form: Form::Packed(Arc::new(Packed { panels, format, shape, scales, levels })) })
            }
        }
    }

    /// The weights as they are.
    pub fn as_stored(weights: QuantizedWeights) -> Self {
        StoredWeights { form: Form::Plain(Arc::new(weights)) }
    }

    /// The format.
    pub fn format(&self) -> &WeightFormat {
        match &self.form {
            Form::Packed(packed) => &packed.format,
            Form::Plain(weights) => weights.format(),
        }
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        match &self.form {
            Form::Packed(packed) => &packed.shape,
            Form::Plain(weights) => weights.shape(),
        }
    }

    /// The panels that are multiplied, where the format has such a kernel.
    pub fn panels(&self) -> Option<&PackedLowBit> {
        match &self.form {
            Form::Packed(packed) => Some(&packed.panels),
            Form::Plain(_) => None,
        }
    }

    /// Bytes held, panels filled up to whole vectors included. What a file takes is [`StoredWeights::stored_bytes`].
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Packed(packed) => {
                let levels = match &packed.levels {
                    StoredLevels::Shared(book) => book.bytes(),
                    _ => 0,
                };
                packed.panels.bytes() + packed.scales.as_ref().map_or(0, Scales::bytes) + levels
            }
            Form::Plain(weights) => weights.bytes(),
        }
    }

    /// Bytes as a file has them: codes at their bits, and what is stored with them.
    pub fn stored_bytes(&self) -> usize {
        let packed = match &self.form {
            // Of the kept, the end of the last row needs no saying.
            Form::Plain(weights) => return weights.bytes() - if weights.kept().is_some() { 4 } else { 0 },
            Form::Packed(packed) => packed,
        };
        let Packed { panels, format, shape, scales, levels } = packed.as_ref();
        // A shape that was packed has groups.
        let groups = format.groups(shape).unwrap_or(0);
        let of = |count: usize| (count * format.bits() as usize).div_ceil(8);
        let scales = scales.as_ref().map_or(groups * if format.scale_format() == ScaleFormat::F32 { 4 } else { 2 }, Scales::bytes);
        let levels = match levels {
            StoredLevels::Shared(book) => book.bytes(),
            _ => 0,
        };
        of(shape.elements()) + scales + if panels.zero_points().is_some() { of(groups) } else { 0 } + levels
    }

    /// The weights as stored, read back from the panels where they were packed.
    ///
    /// # Errors
    /// Those of [`QuantizedWeights::from_parts`], which packed weights can't meet.
    pub fn quantized(&self) -> Result<QuantizedWeights> {
        let packed = match &self.form {
            Form::Plain(weights) => return Ok(weights.as_ref().clone()),
            Form::Packed(packed) => packed,
        };
        let Packed { panels, format, shape, scales, levels } = packed.as_ref();
        let groups = format.grouping().of(shape)?;
        // One scale for each group of the tensor, which may be one for all rows.
        let count = groups.len();
        let scales = match scales {
            Some(scales) => scales.clone(),
            None => {
                let list = panels.scales().into_iter().take(count);
                match format.scale_format() {
                    ScaleFormat::F16 => Scales::F16(list.map(f16::from_f32).collect()),
                    ScaleFormat::Bf16 => Scales::Bf16(list.map(bf16::from_f32).collect()),
                    _ => Scales::F32(list.collect()),
                }
            }
        };
        let zeros = match panels.zero_points() {
            Some(points) => Zeros::Points(PackedCodes::new(format.bits(), points.into_iter().take(count).map(u32::from))?),
            None => Zeros::None,
        };
        let codes = PackedCodes::from_bytes(format.bits(), shape.elements(), panels.codes())?;
        let parts = WeightParts { codes, scales, zeros, levels: levels.clone(), kept: None };
        QuantizedWeights::from_parts(format.clone(), shape.clone(), parts)
    }

    /// The values.
    ///
    /// # Errors
    /// As [`StoredWeights::quantized`].
    pub fn dequantize(&self) -> Result<Tensor> {
        match &self.form {
            Form::Plain(weights) => Ok(weights.dequantize()),
            Form::Packed(_) => Ok(self.quantized()?.dequantize()),
        }
    }

    /// The weights where they are held as stored.
    pub(super) fn plain(&self) -> Option<&QuantizedWeights> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Plain(weights) => Some(weights),
        }
    }
}

impl fmt::Debug for StoredWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if self.panels().is_some() { "packed" } else { "as stored" };
        write!(f, "{}{:?}, {form}, {} bytes", self.format(), self.shape(), self.bytes())
    }
}

/// What a code's number is in units of, beside the scale.
fn levels_step(format: &WeightFormat) -> f32 {
    if format.levels() == &Levels::MxInt8 { 1.0 / 64.0 } else { 1.0 }
}

/// The weights in panels, `None` where no kernel multiplies such codes.
fn pack(weights: &QuantizedWeights) -> Result<Option<PackedLowBit>> {
    let (format, shape) = (weights.format(), weights.shape());
    let bits = format.bits();
    let [row, group] = format.grouping().of(shape)?.row_and_size();
    let n = if shape.rank() < 2 { 1 } else { shape.dims()[0] };
    let k = shape.elements().checked_div(n).unwrap_or(0);
    // One scale of the tensor is the scale of each row.
    let (group, repeat) = if row == k { (group, 1) } else { (k.max(1), n) };
    if weights.kept().is_some() || k == 0 || (group < k && !group.is_multiple_of(4)) || group.min(k) > PackedLowBit::GROUP_MAX {
        return Ok(None);
    }
    let table;
    let points: Vec<u8>;
    let levels = match (format.levels(), weights.zeros(), bits) {
        (Levels::Int(_) | Levels::MxInt8, _, 2 | 3 | 4 | 8) => kernels::Levels::Signed,
        (Levels::Uint(_), Zeros::Points(list), 2 | 3 | 4 | 8) => {
            points = (0..repeat).flat_map(|_| list.iter().map(|point| point as u8)).collect();
            kernels::Levels::ZeroPoints(&points)
        }
        (levels, Zeros::None, 2..=4)
            if !matches!(weights.stored_levels(), StoredLevels::Own(_)) && !matches!(levels, Levels::Trellis(_)) =>
        {
            table = weights.table(0);
            kernels::Levels::Table(&table)
        }
        _ => return Ok(None),
    };
    let (scales, step) = (weights.scales(), levels_step(format));
    let all = || (0..repeat).flat_map(|_| (0..scales.len()).map(|i| scales.at(i) * step));
    let (halves, brains, floats): (Vec<f16>, Vec<bf16>, Vec<f32>);
    let scales = match scales {
        Scales::F16(_) => {
            halves = all().map(f16::from_f32).collect();
            GroupScales::F16(&halves)
        }
        // Powers of two have no more mantissa than bf16, and 2^-133 is the smallest it holds.
        Scales::Bf16(_) | Scales::E8M0(_) => {
            brains = all().map(bf16::from_f32).collect();
            GroupScales::Bf16(&brains)
        }
        _ => {
            floats = all().collect();
            GroupScales::F32(&floats)
        }
    };
    PackedLowBit::pack(&LowBit { n, k, bits, group, codes: weights.packed().as_bytes(), levels, scales }).map(Some)
}
