//! The largest or smallest elements along an axis.

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::operator::arguments::{check_ints, length, one_int};
use crate::nn::operator::attributes::Attributes;
use crate::nn::operator::{Facts, Operation, check_arity, resolve_axis};
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::{bf16, f16};
use crate::tensor::{DType, Shape};

/// ONNX TopK: the `k` largest (or smallest) elements along an axis, best first, and their indices; of equal ones those with
/// the lower index. NaN counts as larger than all numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopK {
    axis: i64,
    smallest: bool,
    k: Option<i64>,
}

impl TopK {
    /// The largest along this axis, counted from the end when negative, as many as input 1 says.
    pub fn new(axis: i64) -> Self {
        TopK { axis, smallest: false, k: None }
    }

    /// The smallest instead.
    #[must_use]
    pub fn with_smallest(self, smallest: bool) -> Self {
        TopK { smallest, ..self }
    }

    /// As many as this, where there is no input 1.
    #[must_use]
    pub fn with_k(self, k: i64) -> Self {
        TopK { k: Some(k), ..self }
    }
}

/// Keeps the best of what comes by in a heap whose root is the worst, then sorts them, in place.
struct Best<'a, T, F> {
    values: &'a mut [T],
    indices: &'a mut [i64],
    /// Elements from one kept to the next, and the first.
    step: usize,
    start: usize,
    kept: usize,
    better: F,
}

impl<T: Copy, F: Fn((T, i64), (T, i64)) -> bool> Best<'_, T, F> {
    fn get(&self, i: usize) -> (T, i64) {
        let at = self.start + i * self.step;
        (self.values[at], self.indices[at])
    }

    fn set(&mut self, i: usize, (value, index): (T, i64)) {
        let at = self.start + i * self.step;
        (self.values[at], self.indices[at]) = (value, index);
    }

    /// Lets `item` fall from `i` until nothing below it is worse, among the first `count`.
    fn sink(&mut self, mut i: usize, count: usize, item: (T, i64)) {
        loop {
            let mut child = 2 * i + 1;
            if child >= count {
                break;
            }
            if child + 1 < count && (self.better)(self.get(child), self.get(child + 1)) {
                child += 1;
            }
            if !(self.better)(item, self.get(child)) {
                break;
            }
            self.set(i, self.get(child));
            i = child;
        }
        self.set(i, item);
    }

    fn offer(&mut self, k: usize, item: (T, i64)) {
        if self.kept < k {
            let mut i = self.kept;
            self.kept += 1;
            while i > 0 && (self.better)(self.get((i - 1) / 2), item) {
                self.set(i, self.get((i - 1) / 2));
                i = (i - 1) / 2;
            }
            self.set(i, item);
        } else if (self.better)(item, self.get(0)) {
            self.sink(0, k, item);
        }
    }

    /// Best first.
    fn sort(&mut self) {
        for last in (1..self.kept).rev() {
            let (worst, item) = (self.get(0), self.get(last));
            self.set(last, worst);
            self.sink(0, last, item);
        }
    }
}

fn select<T: Pod>(x: &View<'_>, y: &mut ViewMut<'_>, indices: &mut [i64], axis: usize, better: impl Fn(T, T) -> bool) {
    let (length, k) = (x.dims[axis], y.dims[axis]);
    let inner: usize = x.dims[axis + 1..].iter().product();
    let outer: usize = x.dims[..axis].iter().product();
    let better = |a: (T, i64), b: (T, i64)| better(a.0, b.0) || (!better(b.0, a.0) && a.1 < b.1);
    let (x, values) = (x.as_slice::<T>(), y.as_mut_slice::<T>());
    if k == 0 {
        return;
    }
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let mut best = Best { values, indices, step: inner, start: o * k * inner + i, kept: 0, better };
        for (at, &value) in x[o * length * inner + i..].iter().step_by(inner).take(length).enumerate() {
            best.offer(k, (value, at as i64));
        }
        best.sort();
    }
}

impl Operation for TopK {
    fn name(&self) -> &'static str {
        "TopK"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with_other("largest", !self.smallest, true).with_some("k", self.k)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, if self.k.is_some() { 1 } else { 2 }, 2)?;
        check_ints("k", inputs, 1)?;
        match inputs[0] {
            Some(dtype)
                if matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::Bf16) || dtype.is_integer() && dtype.bits() >= 8 =>
            {
                Ok(vec![dtype, DType::I64])
            }
            other => {
                let got = other.map_or("nothing", DType::name);
                Err(Error::Type { what: "input of TopK".into(), expected: "f16, bf16, f32, f64 or an integer of 8 bits or more", got })
            }
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let k = if facts.has(1) { one_int("k", &facts.value(1)?)? } else { self.k.unwrap_or(0) };
        let (k, shape) = (length("k", k)?, facts.shape(0)?);
        let axis = resolve_axis(self.axis, shape.rank())?;
        if k > shape.dims()[axis] {
            let rule = format!("must be at most {}, the length of axis {axis}", shape.dims()[axis]);
            return Err(Error::parameter("k", k, rule));
        }
        Ok(vec![shape.with_axis(axis, k)?; 2])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let x = inputs.need(0)?;
        let axis = resolve_axis(self.axis, x.dims.len())?;
        let mut each = outputs.each();
        let (Some(mut y), Some(mut indices)) = (each.next(), each.next()) else {
            return Err(Error::length("list of outputs", 2, 1));
        };
        let indices = indices.as_mut_slice::<i64>();
        macro_rules! select {
            ($type:ty, $order:expr) => {
                match self.smallest {
                    false => select::<$type>(&x, &mut y, indices, axis, |a, b| $order(&a, &b).is_gt()),
                    true => select::<$type>(&x, &mut y, indices, axis, |a, b| $order(&a, &b).is_lt()),
                }
            };
        }
        macro_rules! floats {
            ($type:ty) => {
                select!($type, |a: &$type, b: &$type| a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())))
            };
        }
        match x.dtype {
            DType::F32 => floats!(f32),
            DType::F64 => floats!(f64),
            DType::F16 => floats!(f16),
            DType::Bf16 => floats!(bf16),
            DType::I64 => select!(i64, i64::cmp),
            DType::I32 => select!(i32, i32::cmp),
            DType::I16 => select!(i16, i16::cmp),
            DType::I8 => select!(i8, i8::cmp),
            DType::U64 => select!(u64, u64::cmp),
            DType::U32 => select!(u32, u32::cmp),
            DType::U16 => select!(u16, u16::cmp),
            _ => select!(u8, u8::cmp),
        }
        Ok(())
    }
}
