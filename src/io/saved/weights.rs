//! Weights of any format, as a file has them: codes in their bits, scales in theirs.

use serde::{Deserialize, Serialize};

use super::tensors::{Reader, Writer};
use crate::error::{Error, Result};
use crate::num::{F8E4M3, F8E8M0, SmallFloat, bf16, f16};
use crate::quant::{
    Codebook, Levels, LogScales, PackedCodes, QuantizedWeights, ScaleFormat, Scales, SparseSplit, StoredLevels, WeightFormat, WeightParts,
    Zeros,
};
use crate::tensor::{Shape, Tensor};

/// Format and shape of weights; the rest is tensors under the node's name: `weight` (bytes of packed codes), `weight_scale`, and where
/// there are some `weight_zero`, `weight_levels`, `kept_*`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// The text of [`WeightFormat`].
    pub format: String,
    pub dims: Vec<usize>,
}

pub fn put(tensors: &mut Writer, node: &str, weights: &QuantizedWeights) -> Result<Weights> {
    let entry = Weights { format: weights.format().to_string(), dims: weights.shape().dims().to_vec() };
    bytes(tensors, format!("{node}.weight"), weights.packed().as_bytes())?;
    put_scales(tensors, &format!("{node}.weight_scale"), weights.scales())?;
    match weights.zeros() {
        Zeros::None => {}
        Zeros::Points(list) | Zeros::Shifts(list) => bytes(tensors, format!("{node}.weight_zero"), list.as_bytes())?,
        Zeros::Offsets(offsets) => put_scales(tensors, &format!("{node}.weight_zero"), offsets)?,
    }
    match weights.stored_levels() {
        StoredLevels::None => {}
        StoredLevels::Shared(book) => tensors.put_list(format!("{node}.weight_levels"), book.levels())?,
        StoredLevels::Own(list) => tensors.put(format!("{node}.weight_levels"), Tensor::new([list.len()], list.clone())?)?,
    }
    if let Some(kept) = weights.kept() {
        let rows = kept.rows();
        let counts: Vec<u32> = (0..rows).map(|row| kept.row(row).count() as u32).collect();
        let (columns, values): (Vec<u32>, Vec<f32>) =
            (0..rows).flat_map(|row| kept.row(row).map(|(column, value)| (column as u32, value))).unzip();
        tensors.put(format!("{node}.kept_in_row"), Tensor::new([rows], counts)?)?;
        tensors.put_list(format!("{node}.kept"), &values)?;
        let name = format!("{node}.kept_column");
        match columns.iter().all(|&column| column <= u32::from(u16::MAX)) {
            true => tensors.put(name, Tensor::new([columns.len()], columns.iter().map(|&column| column as u16).collect::<Vec<_>>())?)?,
            false => tensors.put(name, Tensor::new([columns.len()], columns)?)?,
        }
    }
    Ok(entry)
}

pub fn take(tensors: &mut Reader, node: &str, entry: &Weights) -> Result<QuantizedWeights> {
    let format: WeightFormat = entry.format.parse()?;
    let shape = Shape::new(entry.dims.clone())?;
    let groups = format.groups(&shape)?;
    let codes = PackedCodes::from_bytes(format.bits(), shape.elements(), tensors.take::<u8>(&format!("{node}.weight"))?.into_vec())?;
    let scales = take_scales(tensors, &format!("{node}.weight_scale"), format.scale_format(), groups)?;
    let name = format!("{node}.weight_zero");
    let zeros = match format.levels() {
        Levels::Uint(bits) => Zeros::Points(PackedCodes::from_bytes(*bits, groups, tensors.take::<u8>(&name)?.into_vec())?),
        Levels::Shifted(_) => Zeros::Shifts(PackedCodes::from_bytes(Levels::SHIFT_BITS, groups, tensors.take::<u8>(&name)?.into_vec())?),
        Levels::Offset(_) => Zeros::Offsets(take_scales(tensors, &name, format.scale_format(), groups)?),
        _ => Zeros::None,
    };
    let name = format!("{node}.weight_levels");
    let levels = match format.levels() {
        Levels::Learned { own: true, .. } => StoredLevels::Own(tensors.take::<f16>(&name)?.into_vec()),
        Levels::Learned { own: false, .. } | Levels::Custom(_) => {
            StoredLevels::Shared(Codebook::new(tensors.take::<f32>(&name)?.into_vec())?)
        }
        _ => StoredLevels::None,
    };
    let kept = format.keep().map(|_| take_kept(tensors, node, &shape)).transpose()?;
    QuantizedWeights::from_parts(format, shape, WeightParts { codes, scales, zeros, levels, kept })
}

fn take_kept(tensors: &mut Reader, node: &str, shape: &Shape) -> Result<SparseSplit> {
    let counts = tensors.take::<u32>(&format!("{node}.kept_in_row"))?;
    let values = tensors.take::<f32>(&format!("{node}.kept"))?;
    let name = format!("{node}.kept_column");
    let columns: Vec<u32> = match tensors.take_some_of::<u16>(&name) {
        Some(short) => short.as_slice().iter().map(|&column| column.into()).collect(),
        None => tensors.take::<u32>(&name)?.into_vec(),
    };
    let total: u64 = counts.as_slice().iter().map(|&count| u64::from(count)).sum();
    for (what, got) in [("kept values", values.len()), ("columns of kept values", columns.len())] {
        if got as u64 != total {
            return Err(Error::length(what, usize::try_from(total).unwrap_or(usize::MAX), got));
        }
    }
    let in_row = shape.elements().checked_div(counts.len()).unwrap_or(0);
    let rows = counts.as_slice().iter().enumerate().flat_map(|(row, &count)| std::iter::repeat_n(row, count as usize));
    let place = |((row, column), value): ((usize, u32), &f32)| match column as usize {
        column if column < in_row => Ok((row * in_row + column, *value)),
        column => Err(Error::parameter("column of a kept value", column, format!("must be below {in_row}"))),
    };
    let entries: Vec<(usize, f32)> = rows.zip(columns).zip(values.as_slice()).map(place).collect::<Result<_>>()?;
    SparseSplit::from_entries(shape, &entries)
}

fn bytes(tensors: &mut Writer, name: String, bytes: &[u8]) -> Result<()> {
    tensors.put(name, Tensor::new([bytes.len()], bytes.to_vec())?)
}

fn put_scales(tensors: &mut Writer, name: &str, scales: &Scales) -> Result<()> {
    match scales {
        Scales::F32(list) => tensors.put_list(name.to_owned(), list),
        Scales::F16(list) => tensors.put(name.to_owned(), Tensor::new([list.len()], list.clone())?),
        Scales::Bf16(list) => tensors.put(name.to_owned(), Tensor::new([list.len()], list.clone())?),
        Scales::E8M0(list) => bytes(tensors, name.to_owned(), &list.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>()),
        Scales::E4M3 { codes, tensor } => {
            tensors.put_list(format!("{name}.tensor"), &[*tensor])?;
            bytes(tensors, name.to_owned(), &codes.iter().map(|code| code.to_bits()).collect::<Vec<_>>())
        }
        Scales::Double { codes, steps, offset } => {
            tensors.put_list(format!("{name}.steps"), steps)?;
            tensors.put_list(format!("{name}.offset"), &[*offset])?;
            bytes(tensors, name.to_owned(), codes)
        }
        Scales::Log(scales) => {
            bytes(tensors, format!("{name}.largest_and_fall"), &[scales.largest().to_bits(), scales.fall()])?;
            bytes(tensors, name.to_owned(), scales.codes().as_bytes())
        }
    }
}

fn take_scales(tensors: &mut Reader, name: &str, format: ScaleFormat, groups: usize) -> Result<Scales> {
    let single = |tensors: &mut Reader, part: &str| {
        let list = tensors.take::<f32>(&format!("{name}.{part}"))?;
        if list.len() == 1 { Ok(list.as_slice()[0]) } else { Err(Error::length(format!("tensor `{name}.{part}`"), 1, list.len())) }
    };
    let codes = |tensors: &mut Reader| tensors.take::<u8>(name).map(Tensor::into_vec);
    Ok(match format {
        ScaleFormat::F32 => Scales::F32(tensors.take::<f32>(name)?.into_vec()),
        ScaleFormat::F16 => Scales::F16(tensors.take::<f16>(name)?.into_vec()),
        ScaleFormat::Bf16 => Scales::Bf16(tensors.take::<bf16>(name)?.into_vec()),
        ScaleFormat::E8M0 => Scales::E8M0(codes(tensors)?.into_iter().map(F8E8M0::from_bits).collect()),
        ScaleFormat::E4M3 => {
            let tensor = single(tensors, "tensor")?;
            Scales::E4M3 { codes: codes(tensors)?.into_iter().map(F8E4M3::from_bits).collect(), tensor }
        }
        ScaleFormat::Double => {
            let steps = tensors.take::<f32>(&format!("{name}.steps"))?.into_vec();
            let offset = single(tensors, "offset")?;
            Scales::Double { codes: codes(tensors)?, steps, offset }
        }
        ScaleFormat::Log(bits) => {
            let ends = tensors.take::<u8>(&format!("{name}.largest_and_fall"))?;
            let &[largest, fall] = ends.as_slice() else {
                return Err(Error::length(format!("tensor `{name}.largest_and_fall`"), 2, ends.len()));
            };
            Scales::Log(LogScales::new(PackedCodes::from_bytes(bits, groups, codes(tensors)?)?, F8E8M0::from_bits(largest), fall))
        }
    })
}
