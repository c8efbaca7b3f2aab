//! One element or another.

use super::attributes::Attributes;
use super::broadcast::{Rows, Spread, broadcast_shape};
use super::numbers::{Number, check_same, check_type, is_float, is_number, unexpected, with_number};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::kernels::math::{self, GRAIN, vectorized};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View};
use crate::tensor::{DType, Shape};

/// ONNX Where: of the inputs condition, a and b, `a` where the condition is true, else `b`, with numpy's broadcasting. Elements
/// of any type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Where;

impl Where {
    fn elements<T: bytemuck::Pod + Send + Sync>(inputs: &Inputs<'_>, dims: &[usize], y: &mut [T], threads: usize) -> Result<()> {
        let (c, a, b) = (inputs.need(0)?, inputs.need(1)?, inputs.need(2)?);
        let spread = Spread::new(dims, [c.dims, a.dims, b.dims])?;
        let (c, a, b): (&[u8], &[T], &[T]) = (c.bytes, a.as_slice(), b.as_slice());
        let steps = spread.steps();
        spread.split(y, (threads, GRAIN), &|mut rows: Rows<'_, 3>, y: &mut [T]| {
            vectorized(
                #[inline(always)]
                || {
                    for y in y.chunks_exact_mut(rows.length) {
                        let [c0, a0, b0] = rows.step();
                        match steps {
                            [1, 1, 1] => {
                                for ((y, &c), (&a, &b)) in y.iter_mut().zip(&c[c0..]).zip(a[a0..].iter().zip(&b[b0..])) {
                                    *y = if c != 0 { a } else { b };
                                }
                            }
                            [1, 1, 0] => {
                                let b = b[b0];
                                for ((y, &c), &a) in y.iter_mut().zip(&c[c0..]).zip(&a[a0..]) {
                                    *y = if c != 0 { a } else { b };
                                }
                            }
                            [1, 0, 1] => {
                                let a = a[a0];
                                for ((y, &c), &b) in y.iter_mut().zip(&c[c0..]).zip(&b[b0..]) {
                                    *y = if c != 0 { a } else { b };
                                }
                            }
                            [step_c, step_a, step_b] => {
                                for (i, y) in y.iter_mut().enumerate() {
                                    *y = if c[c0 + i * step_c] != 0 { a[a0 + i * step_a] } else { b[b0 + i * step_b] };
                                }
                            }
                        }
                    }
                },
            );
        });
        Ok(())
    }
}

impl Operation for Where {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 3, 3)?;
        check_type(self.name(), inputs, 0, "bool", |dtype| dtype == DType::Bool)?;
        Ok(vec![check_same(self.name(), &inputs[1..], "any", |_| true)?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![broadcast_shape([facts.shape(0)?, facts.shape(1)?, facts.shape(2)?])?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let mut y = outputs.get(0);
        let dims = y.dims;
        match y.dtype.bytes() {
            1 => Where::elements::<u8>(inputs, dims, y.as_mut_slice(), threads),
            2 => Where::elements::<u16>(inputs, dims, y.as_mut_slice(), threads),
            4 => Where::elements::<u32>(inputs, dims, y.as_mut_slice(), threads),
            _ => Where::elements::<u64>(inputs, dims, y.as_mut_slice(), threads),
        }
    }
}

/// ONNX Clip: elements below the second input become it, those above the third (or above it after that) become the third; NaN
/// stays NaN. Both are scalars of the type of the first and may be left out. Numbers of any type.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Clip {
    min: Option<f32>,
    max: Option<f32>,
}

impl Clip {
    /// Bounds that come as inputs.
    pub fn new() -> Self {
        Clip::default()
    }

    /// The bounds that hold where the inputs are left out.
    pub(crate) fn bounds(self) -> (Option<f32>, Option<f32>) {
        (self.min, self.max)
    }

    /// Bounds that hold where the input is left out: the attributes of opset 10 and before.
    #[must_use]
    pub fn with_bounds(self, min: Option<f32>, max: Option<f32>) -> Self {
        Clip { min, max }
    }
}

fn clip<T: Number>(x: View<'_>, y: &mut [T], min: Option<T>, max: Option<T>, threads: usize) {
    let x = x.as_slice();
    if !T::VECTORS {
        let above = |x: T| match min {
            Some(min) if x < min => min,
            _ => x,
        };
        return math::each(x, y, &|x: T| match (above(x), max) {
            (x, Some(max)) if x > max => max,
            (x, _) => x,
        });
    }
    match (min, max) {
        (Some(min), Some(max)) => math::map(x, y, threads, move |x: T| {
            let x = if x < min { min } else { x };
            if x > max { max } else { x }
        }),
        (Some(min), None) => math::map(x, y, threads, move |x: T| if x < min { min } else { x }),
        (None, Some(max)) => math::map(x, y, threads, move |x: T| if x > max { max } else { x }),
        (None, None) => y.copy_from_slice(x),
    }
}

impl Operation for Clip {
    fn name(&self) -> &'static str {
        "Clip"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_some("min", self.min).with_some("max", self.max)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 3)?;
        let dtype = check_type(self.name(), inputs, 0, "a number", |dtype| {
            is_float(dtype) || is_number(dtype) && self.min.is_none() && self.max.is_none()
        })?;
        for i in 1..inputs.len() {
            if inputs[i].is_some() {
                check_type(self.name(), inputs, i, dtype.name(), |bound| bound == dtype)?;
            }
        }
        Ok(vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        for i in 1..facts.count() {
            if facts.has(i) && facts.shape(i)?.elements() != 1 {
                return Err(Error::shape(if i == 1 { "min" } else { "max" }, "[], a scalar", facts.shape(i)?.dims()));
            }
        }
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        with_number!(x.dtype, T => {
            let bound = |i: usize, or: Option<f32>| match inputs.get(i) {
                Some(bound) => Some(bound.as_slice::<T>()[0]),
                None => or.map(|bound| T::from_f64(bound.into())),
            };
            clip::<T>(x, y.as_mut_slice(), bound(1, self.min), bound(2, self.max), threads);
            Ok(())
        }, _ => Err(unexpected(self.name(), x.dtype)))
    }
}
