//! Tensors stretched and shrunk along their axes.

mod axis;
mod pass;

use axis::{Along, Rule};
pub use axis::{Coordinates, NearestMode, ResizeMode};
use pass::{Level, Number, Tables, interpolate, pick};

use std::ops::RangeInclusive;

use super::movement::walk::{AXES, check_rank};
use super::{Facts, Operation, check_arity, resolve_axis};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::operator::attributes::{Attributes, CURRENT};
use crate::nn::view::{Inputs, Outputs, View};
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape};

/// What becomes of sizes that would change the proportions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AspectPolicy {
    /// They are taken as they are.
    #[default]
    Stretch,
    /// One scale for all axes, the largest that stays within the sizes.
    NotLarger,
    /// One scale for all axes, the smallest that reaches the sizes.
    NotSmaller,
}

/// ONNX Resize and Upsample, in every mode of the standard.
#[derive(Debug, Clone, PartialEq)]
pub struct Resize {
    rule: Rule,
    extrapolation: f32,
    policy: AspectPolicy,
    axes: Option<Vec<i64>>,
    scales: Option<Vec<f32>>,
    /// Where the region, the scales and the sizes come from.
    inputs: [Option<usize>; 3],
    name: &'static str,
}

impl Resize {
    /// By inputs 1 to 3, the region of interest, scales and sizes: one of the last two is there.
    pub fn new(mode: ResizeMode) -> Self {
        let rule = Rule { mode, coordinates: Coordinates::HalfPixel, exclude_outside: false, antialias: false };
        let inputs = [Some(1), Some(2), Some(3)];
        Resize { rule, extrapolation: 0.0, policy: AspectPolicy::Stretch, axes: None, scales: None, inputs, name: "Resize" }
    }

    /// As Upsample and Resize of opset 10 have it: by the scales of input 1, without half pixels.
    pub fn upsample(mode: ResizeMode) -> Self {
        Resize { inputs: [None, Some(1), None], name: "Upsample", ..Resize::new(mode) }.with_coordinates(Coordinates::Asymmetric)
    }

    /// With another rule for where elements lie.
    #[must_use]
    pub fn with_coordinates(mut self, coordinates: Coordinates) -> Self {
        self.rule.coordinates = coordinates;
        self
    }

    /// Whether elements beyond the ends weigh nothing, instead of being those at the ends.
    #[must_use]
    pub fn with_exclude_outside(mut self, exclude_outside: bool) -> Self {
        self.rule.exclude_outside = exclude_outside;
        self
    }

    /// Whether the kernel grows as wide as what an output element stands for, when shrinking.
    #[must_use]
    pub fn with_antialias(mut self, antialias: bool) -> Self {
        self.rule.antialias = antialias && !matches!(self.rule.mode, ResizeMode::Nearest(_));
        self
    }

    /// With this value outside the input ([`Coordinates::TfCropAndResize`]).
    #[must_use]
    pub fn with_extrapolation_value(self, extrapolation: f32) -> Self {
        Resize { extrapolation, ..self }
    }

    /// With another way to read sizes.
    #[must_use]
    pub fn with_policy(self, policy: AspectPolicy) -> Self {
        Resize { policy, ..self }
    }

    /// With region, scales and sizes of these axes alone, counted from the end when negative.
    #[must_use]
    pub fn with_axes(self, axes: impl Into<Vec<i64>>) -> Self {
        Resize { axes: Some(axes.into()), ..self }
    }

    /// With these scales, where no input has them.
    #[must_use]
    pub fn with_scales(self, scales: impl Into<Vec<f32>>) -> Self {
        Resize { scales: Some(scales.into()), ..self }
    }

    fn axis(&self, i: usize, rank: usize) -> Result<usize> {
        match &self.axes {
            Some(axes) => resolve_axis(axes[i], rank),
            None => Ok(i),
        }
    }

    /// All axes of an input of these dimensions.
    fn axes(&self, dims: &[usize], lists: [Option<Numbers>; 3]) -> Result<[Along; AXES]> {
        let mut all = [Along::default(); AXES];
        for (along, &length) in all.iter_mut().zip(dims) {
            *along = Along { length, out: length, ..Along::default() };
        }
        let count = self.axes.as_ref().map_or(dims.len(), Vec::len);
        let [region, scales, sizes] = lists;
        let check = |what: &'static str, list: &Numbers, expected: usize| match list.count {
            got if got == expected => Ok(()),
            got => Err(Error::length(what, expected, got)),
        };
        let scales = scales.or_else(|| self.scales.as_ref().map(|scales| Numbers::new(scales.iter().map(|&s| s.into()))));
        let crops = self.rule.coordinates == Coordinates::TfCropAndResize;
        if let Some(region) = region.filter(|_| crops) {
            check("roi", &region, 2 * count)?;
            for i in 0..count {
                all[self.axis(i, dims.len())?].region = (region.list[i], region.list[count + i]);
            }
        } else if crops {
            return Err(Error::parameter("roi", "left out", "must be given to crop"));
        }
        match (scales, sizes) {
            (Some(scales), _) => {
                check("scales", &scales, count)?;
                for (i, &scale) in scales.list[..count].iter().enumerate() {
                    if !(scale.is_finite() && scale > 0.0) {
                        return Err(Error::parameter("scale", scale, "must be finite and above 0"));
                    }
                    let along = &mut all[self.axis(i, dims.len())?];
                    let part = if crops { along.region.1 - along.region.0 } else { 1.0 };
                    along.scale = scale;
                    // Saturates, and is then more than a shape can have.
                    along.out = (along.length as f64 * part * scale).floor() as usize;
                }
            }
            (None, Some(sizes)) => {
                check("sizes", &sizes, count)?;
                let mut common: Option<f64> = None;
                for (i, &size) in sizes.list[..count].iter().enumerate() {
                    let along = &mut all[self.axis(i, dims.len())?];
                    if size < 0.0 || (along.length == 0 && size > 0.0) {
                        return Err(Error::parameter("sizes", size, format!("can't be made of {} elements", along.length)));
                    }
                    along.out = size as usize;
                    along.scale = if along.length == 0 { 1.0 } else { size / along.length as f64 };
                    common = Some(match (common, self.policy) {
                        (None, _) => along.scale,
                        (Some(common), AspectPolicy::NotSmaller) => common.max(along.scale),
                        (Some(common), _) => common.min(along.scale),
                    });
                }
                if let Some(scale) = common.filter(|_| self.policy != AspectPolicy::Stretch) {
                    for i in 0..count {
                        let along = &mut all[self.axis(i, dims.len())?];
                        along.scale = scale;
                        along.out = (scale * along.length as f64 + 0.5).floor() as usize;
                    }
                }
            }
            (None, None) => return Err(Error::parameter("scales and sizes", "left out", "one of them must be given")),
        }
        for along in &mut all {
            along.changes = along.out != along.length || along.scale != 1.0 || (crops && along.region != (0.0, 1.0));
            if along.length == 0 && along.out > 0 {
                return Err(Error::parameter("input", 0, "an axis without elements can't grow"));
            }
        }
        Ok(all)
    }
}

/// A list of numbers, of a length that every tensor's axes allow.
#[derive(Clone, Copy)]
struct Numbers {
    list: [f64; 2 * AXES],
    count: usize,
}

impl Numbers {
    fn new(numbers: impl Iterator<Item = f64>) -> Numbers {
        let (mut list, mut count) = ([0.0; 2 * AXES], 0);
        for number in numbers {
            if let Some(to) = list.get_mut(count) {
                *to = number;
            }
            count += 1;
        }
        Numbers { list, count }
    }

    /// `None` for an empty list, which stands for one that was left out.
    fn of(view: &View<'_>) -> Result<Option<Numbers>> {
        let numbers = match view.dtype {
            DType::F32 => Numbers::new(view.f32().iter().map(|&x| x.into())),
            DType::F64 => Numbers::new(view.as_slice::<f64>().iter().copied()),
            DType::F16 => Numbers::new(view.as_slice::<f16>().iter().map(|x| x.to_f64())),
            DType::Bf16 => Numbers::new(view.as_slice::<bf16>().iter().map(|x| x.to_f64())),
            _ => Numbers::new(view.ints()?.map(|x| x as f64)),
        };
        Ok(Some(numbers).filter(|numbers| numbers.count > 0))
    }
}

/// Whether it is a number that is computed with.
fn is_number(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16) || dtype.is_integer() && dtype.bits() >= 8
}

impl Operation for Resize {
    fn name(&self) -> &'static str {
        self.name
    }

    fn attributes(&self) -> Attributes {
        let Rule { mode, coordinates, exclude_outside, antialias } = self.rule;
        let attributes =
            Attributes::new().with("mode", mode.name()).with_some("scales", self.scales.clone()).with_some("axes", self.axes.clone());
        let attributes = match mode {
            ResizeMode::Nearest(_) if self.name == "Upsample" => attributes,
            ResizeMode::Nearest(nearest) => attributes.with("nearest_mode", nearest.name()),
            ResizeMode::Linear => attributes,
            ResizeMode::Cubic(coefficient) => attributes.with("cubic_coeff_a", coefficient),
        };
        if self.name == "Upsample" {
            return attributes;
        }
        let policy = match self.policy {
            AspectPolicy::Stretch => "stretch",
            AspectPolicy::NotLarger => "not_larger",
            AspectPolicy::NotSmaller => "not_smaller",
        };
        attributes
            .with("coordinate_transformation_mode", coordinates.name())
            .with_other("keep_aspect_ratio_policy", policy, "stretch")
            .with_other("exclude_outside", exclude_outside, false)
            .with_other("antialias", antialias, false)
            .with_other("extrapolation_value", self.extrapolation, 0.0)
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        match (self.name, self.rule.coordinates) {
            ("Upsample", _) => 7..=9,
            (_, Coordinates::HalfPixelSymmetric) => 19..=28,
            _ if self.axes.is_some() || self.rule.antialias || self.policy != AspectPolicy::Stretch => 18..=28,
            _ => CURRENT,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 4)?;
        for (i, at) in self.inputs.into_iter().enumerate() {
            let takes = |dtype: DType| if i < 2 { dtype.is_float() } else { matches!(dtype, DType::I64 | DType::I32) };
            if let Some(other) = at.and_then(|at| inputs.get(at).copied().flatten()).filter(|&dtype| !takes(dtype)) {
                let what = ["roi", "scales", "sizes"][i].into();
                return Err(Error::Type { what, expected: if i < 2 { "a float" } else { "i64 or i32" }, got: other.name() });
            }
        }
        match inputs[0] {
            Some(dtype) if is_number(dtype) || matches!(self.rule.mode, ResizeMode::Nearest(_)) => Ok(vec![dtype]),
            other => {
                let got = other.map_or("left out", DType::name);
                Err(Error::Type { what: "input to interpolate".into(), expected: "a float or integer of 8 bits or more", got })
            }
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let mut lists = [None; 3];
        for (list, at) in lists.iter_mut().zip(self.inputs) {
            if let Some(at) = at.filter(|&at| facts.has(at)) {
                let value = facts.value(at)?;
                *list = Numbers::of(&View { dtype: value.dtype(), dims: value.shape().dims(), bytes: value.bytes() })?;
            }
        }
        let dims = facts.shape(0)?.dims();
        check_rank(dims.len())?;
        if let Some(axes) = &self.axes {
            super::arguments::distinct_axes(axes, dims.len())?;
        }
        let all = self.axes(dims, lists)?;
        all.iter().filter(|along| along.changes).try_for_each(|along| self.rule.taps(along).map(drop))?;
        Ok(vec![Shape::new(all[..dims.len()].iter().map(|along| along.out).collect::<Vec<_>>())?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, _: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        if y.bytes.is_empty() {
            return Ok(());
        }
        let rank = x.dims.len();
        let mut lists = [None; 3];
        for (list, at) in lists.iter_mut().zip(self.inputs) {
            if let Some(view) = at.and_then(|at| inputs.get(at)) {
                *list = Numbers::of(&view)?;
            }
        }
        let mut dims = [1; AXES];
        (0..rank).for_each(|axis| dims[axis] = x.dims[inputs.axis(axis, rank)]);
        let logical = self.axes(&dims[..rank], lists)?;
        let mut all = [Along::default(); AXES];
        (0..rank).for_each(|axis| all[inputs.axis(axis, rank)] = logical[axis]);
        let plan = Plan::new(&self.rule, &all[..rank])?;
        if matches!(self.rule.mode, ResizeMode::Nearest(_)) {
            let indices = bytemuck::cast_slice_mut(&mut workspace.columns.grow::<u8>(plan.entries * 8)[..plan.entries * 8]);
            plan.fill(&self.rule, indices, |_, _| {});
            let (size, outside) = (x.dtype.bytes(), bytes_of(self.extrapolation, x.dtype));
            pick(plan.levels(), indices, size, &outside[..size], x.bytes, y.bytes);
            return Ok(());
        }
        let memory = &mut workspace.columns;
        if x.dtype == DType::F32 {
            let (tables, rows, _) = plan.tables(&self.rule, memory.grow::<u8>(plan.bytes::<f32>(0)?), self.extrapolation, |w| w as f32);
            interpolate(plan.levels(), tables, x.f32(), bytemuck::cast_slice_mut(y.bytes), rows);
            return Ok(());
        }
        // Anything else goes through f64.
        let (from, to) = (x.len(), y.bytes.len() / y.dtype.bytes());
        let bytes = plan.bytes::<f64>(from.saturating_add(to))?;
        let (tables, rows, rest) = plan.tables(&self.rule, memory.grow::<u8>(bytes), self.extrapolation.into(), |w| w);
        let (wide, rest) = rest.split_at_mut(from);
        widen(&x, wide);
        interpolate(plan.levels(), tables, wide, &mut rest[..to], rows);
        narrow(&rest[..to], y.dtype, y.bytes);
        Ok(())
    }
}

/// The levels of a resize, and how much memory their tables take.
struct Plan {
    levels: [Level; AXES],
    along: [Along; AXES],
    count: usize,
    /// Indices, and as many weights.
    entries: usize,
    /// Elements of rows between levels.
    rows: usize,
}

impl Plan {
    fn new(rule: &Rule, all: &[Along]) -> Result<Plan> {
        let mut plan = Plan { levels: [Level::default(); AXES], along: [Along::default(); AXES], count: 0, entries: 0, rows: 0 };
        let mut outer = 1;
        for (axis, along) in all.iter().enumerate() {
            if !along.changes {
                outer *= along.length;
                continue;
            }
            let (after, taps) = (&all[axis + 1..], rule.taps(along)?);
            let (inner, inner_out) = (after.iter().map(|a| a.length).product(), after.iter().map(|a| a.out).product());
            let level = Level { outer, length: along.length, out: along.out, inner, inner_out, taps, table: plan.entries };
            plan.levels[plan.count] = level;
            plan.along[plan.count] = *along;
            plan.count += 1;
            plan.entries += taps * along.out;
            plan.rows += inner;
            outer = 1;
        }
        Ok(plan)
    }

    fn levels(&self) -> &[Level] {
        &self.levels[..self.count]
    }

    fn fill(&self, rule: &Rule, indices: &mut [usize], mut weight: impl FnMut(usize, f64)) {
        for (level, along) in self.levels().iter().zip(&self.along) {
            let own = &mut indices[level.table..][..level.taps * level.out];
            rule.fill(along, own, |i, w| weight(level.table + i, w));
        }
    }

    /// Bytes of tables, rows and so many elements more.
    fn bytes<T>(&self, more: usize) -> Result<usize> {
        let elements = self.entries.checked_add(self.rows).and_then(|sum| sum.checked_add(more));
        let bytes = elements.and_then(|elements| elements.checked_mul(size_of::<T>())?.checked_add(self.entries.checked_mul(8)?));
        bytes.ok_or_else(|| Error::ShapeOverflow { shape: vec![self.entries, self.rows, more] })
    }

    /// The tables, filled, room for rows, and the rest of the memory.
    fn tables<'m, T: Number>(
        &self,
        rule: &Rule,
        memory: &'m mut [u8],
        extrapolation: T,
        number: impl Fn(f64) -> T,
    ) -> (Tables<'m, T>, &'m mut [T], &'m mut [T]) {
        let (indices, rest) = memory.split_at_mut(self.entries * size_of::<usize>());
        let (indices, rest): (&mut [usize], &mut [T]) = (bytemuck::cast_slice_mut(indices), numbers(rest));
        let (weights, rest) = rest.split_at_mut(self.entries);
        let (rows, rest) = rest.split_at_mut(self.rows);
        self.fill(rule, indices, |i, w| weights[i] = number(w));
        (Tables { indices, weights, extrapolation }, rows, rest)
    }
}

/// As many elements as the bytes hold.
fn numbers<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    let whole = bytes.len() / size_of::<T>() * size_of::<T>();
    bytemuck::cast_slice_mut(&mut bytes[..whole])
}

macro_rules! conversions {
    ($($variant:ident $type:ty: $wide:expr, $narrow:expr;)*) => {
        fn widen(x: &View<'_>, to: &mut [f64]) {
            match x.dtype {
                $(DType::$variant => {
                    let wide: fn($type) -> f64 = $wide;
                    to.iter_mut().zip(x.as_slice::<$type>()).for_each(|(to, &x)| *to = wide(x));
                })*
                _ => unreachable!("checked when the types were inferred"),
            }
        }

        /// Integers to the nearest, ties to even, within their range.
        fn narrow(from: &[f64], dtype: DType, to: &mut [u8]) {
            match dtype {
                $(DType::$variant => {
                    let narrow: fn(f64) -> $type = $narrow;
                    bytemuck::cast_slice_mut::<u8, $type>(to).iter_mut().zip(from).for_each(|(to, &from)| *to = narrow(from));
                })*
                _ => unreachable!("checked when the types were inferred"),
            }
        }
    };
}
conversions! {
    F32 f32: |x| x.into(), |x| x as f32;
    F64 f64: |x| x, |x| x;
    F16 f16: f16::to_f64, f16::from_f64;
    Bf16 bf16: bf16::to_f64, bf16::from_f64;
    I64 i64: |x| x as f64, |x| x.round_ties_even() as i64;
    I32 i32: |x| x.into(), |x| x.round_ties_even() as i32;
    I16 i16: |x| x.into(), |x| x.round_ties_even() as i16;
    I8 i8: |x| x.into(), |x| x.round_ties_even() as i8;
    U64 u64: |x| x as f64, |x| x.round_ties_even() as u64;
    U32 u32: |x| x.into(), |x| x.round_ties_even() as u32;
    U16 u16: |x| x.into(), |x| x.round_ties_even() as u16;
    U8 u8: |x| x.into(), |x| x.round_ties_even() as u8;
}

/// A number as an element of this type, 0 where the type has none.
fn bytes_of(value: f32, dtype: DType) -> [u8; 8] {
    let mut word = [0u64];
    if is_number(dtype) {
        narrow(&[value.into()], dtype, &mut bytemuck::cast_slice_mut::<u64, u8>(&mut word)[..dtype.bytes()]);
    }
    bytemuck::cast(word)
}
