//! Powers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::broadcast::{Spread, broadcast_shape, zip};
use super::numbers::{Number, check_type, is_float, is_number, unexpected, with_integer, with_number};
use super::{Facts, Operation, check_arity};
use crate::error::{Error, Result};
use crate::kernels::{Workspace, math};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View};
use crate::tensor::{DType, Shape};

/// ONNX Pow: `a^b` in the type of `a`, with numpy's broadcasting. Numbers of any two types; where both are integers the product
/// wraps, and a negative exponent gives what division towards zero would (of a base of zero, an error).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pow;

/// `base^exponent`, wrapping; `None` when it divides by zero.
fn integer_power(base: i64, exponent: i64) -> Option<i64> {
    match (base, exponent) {
        (_, 0..) => {
            let (mut result, mut square, mut rest) = (1i64, base, exponent);
            while rest > 0 {
                if rest & 1 == 1 {
                    result = result.wrapping_mul(square);
                }
                square = square.wrapping_mul(square);
                rest >>= 1;
            }
            Some(result)
        }
        (0, _) => None,
        (1, _) => Some(1),
        (-1, _) => Some(if exponent & 1 == 0 { 1 } else { -1 }),
        _ => Some(0),
    }
}

/// Exponents that networks' formulas use again and again, as operations that vectors have. Says whether this is one.
fn quick(x: &[f32], exponent: f32, y: &mut [f32], threads: usize) -> bool {
    match exponent {
        1.0 => y.copy_from_slice(x),
        2.0 => math::map(x, y, threads, |x| x * x),
        3.0 => math::map(x, y, threads, |x| x * x * x),
        -1.0 => math::map(x, y, threads, |x| 1.0 / x),
        // -0 to the half is 0, and -∞ to it +∞.
        0.5 => math::map(x, y, threads, |x: f32| if x == f32::NEG_INFINITY { f32::INFINITY } else { (x + 0.0).sqrt() }),
        _ => return false,
    }
    true
}

/// The elements, in i64: of u64, the lowest 63 bits, which have the same powers modulo 2^64.
#[allow(clippy::unnecessary_cast)]
fn integers(b: View<'_>) -> Option<Vec<i64>> {
    with_integer!(b.dtype, T => Some(b.as_slice::<T>().iter().map(|&b| if T::MIN == 0 { b as i64 & i64::MAX } else { b as i64 }).collect()), _ => None)
}

impl Operation for Pow {
    fn name(&self) -> &'static str {
        "Pow"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 2)?;
        check_type(self.name(), inputs, 1, "a number", is_number)?;
        Ok(vec![check_type(self.name(), inputs, 0, "f32, f64, f16, bf16, i32 or i64", |dtype| {
            is_float(dtype) || matches!(dtype, DType::I32 | DType::I64)
        })?])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![broadcast_shape([facts.shape(0)?, facts.shape(1)?])?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (a, b, mut y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
        if y.bytes.is_empty() {
            return Ok(());
        }
        let spread = Spread::new(y.dims, [a.dims, b.dims])?;
        if (a.dtype, b.dtype) == (DType::F32, DType::F32) {
            let (a, b, y) = (a.f32(), b.f32(), y.f32());
            if !(b.len() == 1 && a.len() == y.len() && quick(a, b[0], y, threads)) {
                zip(&spread, (a, b), y, &|a, b| f64::from(a).powf(f64::from(b)) as f32);
            }
            return Ok(());
        }
        if !is_float(a.dtype)
            && let Some(exponents) = integers(b)
        {
            let divides = AtomicBool::new(false);
            let power = |a: i64, b: i64| {
                integer_power(a, b).unwrap_or_else(|| {
                    divides.store(true, Ordering::Relaxed);
                    0
                })
            };
            match a.dtype {
                DType::I32 => zip(&spread, (a.as_slice::<i32>(), &exponents), y.as_mut_slice(), &|a, b| power(a.into(), b) as i32),
                _ => zip(&spread, (a.as_slice::<i64>(), &exponents), y.as_mut_slice(), &power),
            }
            return match divides.into_inner() {
                true => Err(Error::parameter("base", 0, "must not be zero where an integer exponent is negative")),
                false => Ok(()),
            };
        }
        let exponents: Vec<f64> = with_number!(b.dtype, T => b.as_slice::<T>().iter().map(|b| b.to_f64()).collect(), _ => Vec::new());
        with_number!(a.dtype, T => {
            zip(&spread, (a.as_slice::<T>(), &exponents), y.as_mut_slice(), &|a, b| T::from_f64(a.to_f64().powf(b)));
            Ok(())
        }, _ => Err(unexpected(self.name(), a.dtype)))
    }
}
