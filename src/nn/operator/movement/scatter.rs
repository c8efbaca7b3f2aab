//! Elements put where indices say.

use std::ops::RangeInclusive;

use super::gather::{check_elements, each_element, slice_at};
use super::walk::with_word;
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::arguments::check_ints;
use crate::nn::operator::attributes::{Attributes, CURRENT};
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape};

/// What becomes of an update and of what was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Combine {
    /// The update.
    #[default]
    None,
    /// Their sum.
    Add,
    /// Their product.
    Mul,
    /// The larger one.
    Max,
    /// The smaller one.
    Min,
}

impl Combine {
    /// The standard's name for it.
    fn name(self) -> &'static str {
        match self {
            Combine::None => "none",
            Combine::Add => "add",
            Combine::Mul => "mul",
            Combine::Max => "max",
            Combine::Min => "min",
        }
    }

    fn opsets(self) -> RangeInclusive<i64> {
        match self {
            Combine::None => CURRENT,
            Combine::Add | Combine::Mul => 16..=28,
            Combine::Max | Combine::Min => 18..=28,
        }
    }
}

fn check_types(inputs: &[Option<DType>], reduction: Combine) -> Result<Vec<DType>> {
    check_arity(inputs, 3, 3)?;
    check_ints("indices", inputs, 1)?;
    if let (Some(data), Some(updates)) = (inputs[0], inputs[2])
        && data != updates
    {
        return Err(Error::Type { what: "updates".into(), expected: data.name(), got: updates.name() });
    }
    match inputs[0] {
        Some(dtype) if reduction != Combine::None && !reduces(dtype) => Err(Error::Type {
            what: "data to reduce into".into(),
            expected: "f16, bf16, f32, f64 or an integer of 8 bits or more",
            got: dtype.name(),
        }),
        dtype => Ok(dtype.into_iter().collect()),
    }
}

fn reduces(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::Bf16 | DType::F32 | DType::F64) || dtype.is_integer() && dtype.bits() >= 8
}

/// Combines elements of the updates (by index) with elements of the output, as `each` calls for.
fn update(
    reduction: Combine,
    updates: &View<'_>,
    y: &mut ViewMut<'_>,
    each: impl FnOnce(&mut dyn FnMut(usize, usize)) -> Result<()>,
) -> Result<()> {
    macro_rules! with {
        ($type:ty, $combine:expr) => {{
            let (updates, y) = (updates.as_slice::<$type>(), y.as_mut_slice::<$type>());
            each(&mut |i, at| y[at] = $combine(y[at], updates[i]))
        }};
    }
    macro_rules! ints {
        ($type:ty) => {
            match reduction {
                Combine::Add => with!($type, <$type>::wrapping_add),
                Combine::Mul => with!($type, <$type>::wrapping_mul),
                Combine::Max => with!($type, Ord::max),
                _ => with!($type, Ord::min),
            }
        };
    }
    macro_rules! floats {
        ($type:ty, $wide:ty, $to:expr, $from:expr) => {
            match reduction {
                Combine::Add => with!($type, |a, b| $from($to(a) + $to(b))),
                Combine::Mul => with!($type, |a, b| $from($to(a) * $to(b))),
                // NaN stays, and wins.
                Combine::Max => with!($type, |a: $type, b: $type| if b > a || $to(b).is_nan() { b } else { a }),
                _ => with!($type, |a: $type, b: $type| if b < a || $to(b).is_nan() { b } else { a }),
            }
        };
    }
    if reduction == Combine::None {
        return with_word!(y.dtype.bytes(), Word => with!(Word, |_, update| update));
    }
    match y.dtype {
        DType::F32 => floats!(f32, f32, |x: f32| x, |x: f32| x),
        DType::F64 => floats!(f64, f64, |x: f64| x, |x: f64| x),
        DType::F16 => floats!(f16, f32, f16::to_f32, f16::from_f32),
        DType::Bf16 => floats!(bf16, f32, bf16::to_f32, bf16::from_f32),
        DType::I64 => ints!(i64),
        DType::I32 => ints!(i32),
        DType::I16 => ints!(i16),
        DType::I8 => ints!(i8),
        DType::U64 => ints!(u64),
        DType::U32 => ints!(u32),
        DType::U16 => ints!(u16),
        _ => ints!(u8),
    }
}

/// ONNX ScatterElements: the data with one element changed for each index, at its own place but along an axis, where the
/// index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScatterElements {
    axis: i64,
    reduction: Combine,
}

impl ScatterElements {
    /// Along this axis, counted from the end when negative, overwriting.
    pub fn new(axis: i64) -> Self {
        ScatterElements { axis, reduction: Combine::None }
    }

    /// With another way to combine.
    #[must_use]
    pub fn with_reduction(self, reduction: Combine) -> Self {
        ScatterElements { reduction, ..self }
    }
}

impl Operation for ScatterElements {
    fn name(&self) -> &'static str {
        "ScatterElements"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with_other("reduction", self.reduction.name(), "none")
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        self.reduction.opsets()
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_types(inputs, self.reduction)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (data, indices, updates) = (facts.shape(0)?, facts.shape(1)?, facts.shape(2)?);
        check_elements(indices, data, resolve_axis(self.axis, data.rank())?)?;
        match updates == indices {
            true => Ok(vec![data.clone()]),
            false => Err(Error::shape("updates", format!("{indices:?}, the shape of the indices"), updates.dims())),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (data, indices, updates, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?, outputs.get(0));
        let axis = resolve_axis(self.axis, data.dims.len())?;
        y.bytes.copy_from_slice(data.bytes);
        update(self.reduction, &updates, &mut y, |change| each_element(&indices, data.dims, axis, change))
    }
}

/// ONNX ScatterND: the data with slices changed, each at the index that one row of the indices spells out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScatterNd {
    reduction: Combine,
}

impl ScatterNd {
    /// Overwriting.
    pub fn new() -> Self {
        ScatterNd::default()
    }

    /// With another way to combine.
    #[must_use]
    pub fn with_reduction(self, reduction: Combine) -> Self {
        ScatterNd { reduction }
    }
}

impl Operation for ScatterNd {
    fn name(&self) -> &'static str {
        "ScatterND"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_other("reduction", self.reduction.name(), "none")
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        self.reduction.opsets()
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_types(inputs, self.reduction)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let (data, indices, updates) = (facts.shape(0)?, facts.shape(1)?, facts.shape(2)?);
        let Some((&depth, places)) = indices.dims().split_last().filter(|(depth, _)| (1..=data.rank()).contains(*depth)) else {
            return Err(Error::shape("indices", format!("[.., 1 to {}]", data.rank()), indices.dims()));
        };
        let expected = [places, &data.dims()[depth..]].concat();
        match updates.dims() == expected {
            true => Ok(vec![data.clone()]),
            false => Err(Error::shape("updates", format!("{expected:?}"), updates.dims())),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let (data, indices, updates, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?, outputs.get(0));
        let depth = indices.dims[indices.dims.len() - 1];
        let (axes, slice) = (&data.dims[..depth], data.dims[depth..].iter().product::<usize>());
        y.bytes.copy_from_slice(data.bytes);
        update(self.reduction, &updates, &mut y, |change| {
            let mut list = indices.ints()?;
            for row in 0..indices.len() / depth {
                let at = slice_at(&mut list, axes)? * slice;
                (0..slice).for_each(|i| change(row * slice + i, at + i));
            }
            Ok(())
        })
    }
}
