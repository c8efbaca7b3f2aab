//! Stored weights taken apart and put together, for files.

use crate::error::{Error, Result};
use crate::quant::weights::shifted::SHIFT_BITS;
use crate::quant::weights::{Levels, PackedCodes, QuantizedWeights, Scales, SparseSplit, StoredLevels, WeightFormat, Zeros};
use crate::tensor::Shape;

/// What [`QuantizedWeights`] hold, apart from format and shape.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightParts {
    /// See [`QuantizedWeights::packed`].
    pub codes: PackedCodes,
    /// See [`QuantizedWeights::scales`].
    pub scales: Scales,
    /// See [`QuantizedWeights::zeros`].
    pub zeros: Zeros,
    /// See [`QuantizedWeights::stored_levels`].
    pub levels: StoredLevels,
    /// See [`QuantizedWeights::kept`].
    pub kept: Option<SparseSplit>,
}

impl QuantizedWeights {
    /// Weights of parts that exist already, every one checked against the format and the shape.
    ///
    /// # Errors
    /// [`Error::Length`] when a part has not as many elements as shape and grouping ask for, [`Error::Parameter`] when it is of
    /// another kind or number of bits than the format's, or holds a scale, offset or level that is not finite.
    pub fn from_parts(format: WeightFormat, shape: Shape, parts: WeightParts) -> Result<Self> {
        let groups = format.grouping().of(&shape)?;
        let WeightParts { codes, scales, zeros, levels, kept } = parts;
        let bits = format.bits();
        let same_bits =
            |what, got: u32| if got == bits { Ok(()) } else { Err(Error::parameter(what, got, format!("{format} has {bits}"))) };
        same_bits("bits of a code", codes.bits())?;
        same_length("codes", shape.elements(), codes.len())?;
        check_scales("scale", &format, &scales, groups.len())?;
        let other = |what, got: &dyn std::fmt::Debug| Err(Error::parameter(what, got, format!("is not what {format} has")));
        match (format.levels(), &zeros) {
            (Levels::Uint(_), Zeros::Points(points)) => {
                same_bits("bits of a zero point", points.bits())?;
                same_length("zero points", groups.len(), points.len())?;
            }
            (Levels::Offset(_), Zeros::Offsets(offsets)) => check_scales("offset", &format, offsets, groups.len())?,
            (Levels::Shifted(_), Zeros::Shifts(shifts)) if shifts.bits() == SHIFT_BITS => {
                same_length("shifts", groups.len(), shifts.len())?;
            }
            (Levels::Uint(_) | Levels::Offset(_) | Levels::Shifted(_), _) => return other("zero points or offsets", &zeros),
            (_, Zeros::None) => {}
            _ => return other("zero points or offsets", &zeros),
        }
        match (format.levels(), &levels) {
            (Levels::Learned { own: true, .. }, StoredLevels::Own(list)) => {
                same_length("levels of all groups", groups.len() << bits, list.len())?;
                if let Some(level) = list.iter().find(|level| !level.is_finite()) {
                    return Err(Error::parameter("level of a group", level, "must be finite"));
                }
            }
            (Levels::Learned { own: false, .. }, StoredLevels::Shared(book)) if book.levels().len() <= 1 << bits => {}
            (Levels::Custom(known), StoredLevels::Shared(book)) if known == book => {}
            (Levels::Learned { .. } | Levels::Custom(_), _) => return other("stored levels", &levels),
            (_, StoredLevels::None) => {}
            _ => return other("stored levels", &levels),
        }
        match &kept {
            Some(split) if format.keep().is_none() || !split.fits(&shape) => return other("part kept exactly", &split),
            None if format.keep().is_some() => return other("part kept exactly", &kept),
            _ => {}
        }
        Ok(QuantizedWeights { format, shape, groups, codes, scales, zeros, levels, kept })
    }

    /// The parts, without a copy.
    pub fn into_parts(self) -> (WeightFormat, Shape, WeightParts) {
        let QuantizedWeights { format, shape, codes, scales, zeros, levels, kept, .. } = self;
        (format, shape, WeightParts { codes, scales, zeros, levels, kept })
    }
}

fn same_length(what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::length(format!("list of {what}"), expected, got)) }
}

fn check_scales(what: &'static str, format: &WeightFormat, scales: &Scales, groups: usize) -> Result<()> {
    if scales.format() != format.scale_format() {
        return Err(Error::parameter(what, scales.format(), format!("{format} stores it as {}", format.scale_format())));
    }
    same_length(&format!("{what}s"), groups, scales.len())?;
    if let Scales::Double { codes, steps, .. } = scales {
        same_length("steps of scales", codes.len().div_ceil(Scales::SECOND_LEVEL), steps.len())?;
    }
    match (0..groups).map(|group| scales.at(group)).find(|scale| !scale.is_finite()) {
        Some(scale) => Err(Error::parameter(what, scale, "must be finite")),
        None => Ok(()),
    }
}
