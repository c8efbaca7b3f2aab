//! The stage that keeps sums as they are.

use super::output::{IntegerStage, Place, StageShape};
use super::simd::Simd;
use crate::error::{Error, Result};

/// `i32`: `sum over k of (lhs - zero_point) * weight`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulate;

impl Accumulate {
    pub(super) fn largest_bias(&self) -> usize {
        0
    }

    pub(super) fn check_parameters(&self, shape: StageShape) -> Result<()> {
        let (k, limit) = (shape.k, shape.bound.products);
        if k > limit { Err(Error::Accumulator { k, limit }) } else { Ok(()) }
    }
}

impl IntegerStage for &Accumulate {
    type Element = i32;
    type Columns<S: Simd> = ();

    fn finish(&self, sum: i64, _: usize, _: usize, _: i32) -> i32 {
        i32::try_from(sum).expect("`check_parameters` saw that k is short enough")
    }

    #[inline(always)]
    unsafe fn columns<S: Simd>(self, _: S, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const NV: usize>(
        self,
        simd: S,
        _: &[(); NV],
        _: [usize; R],
        acc: [[S::I32; NV]; R],
        place: Place,
        dst: *mut i32,
        stride: usize,
    ) {
        for r in 0..R {
            for v in 0..NV {
                // SAFETY: the caller's promise on `dst`.
                unsafe { simd.store_i32(dst.add(r * stride + v * S::LANES), acc[r][v], place.lanes::<S>(v)) }
            }
        }
    }
}
