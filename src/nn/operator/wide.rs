//! Floats of any width, computed with in f64.

use crate::num::{bf16, f16};

/// Floats that are computed with in f64 and rounded once.
pub(super) trait Float: bytemuck::Pod {
    fn wide(self) -> f64;
    fn narrow(x: f64) -> Self;
}

macro_rules! floats {
    ($($type:ty: $wide:expr, $narrow:expr;)*) => {$(
        impl Float for $type {
            fn wide(self) -> f64 {
                let wide: fn($type) -> f64 = $wide;
                wide(self)
            }
            fn narrow(x: f64) -> Self {
                let narrow: fn(f64) -> $type = $narrow;
                narrow(x)
            }
        }
    )*};
}
floats! {
    f32: f64::from, |x| x as f32;
    f64: |x| x, |x| x;
    f16: f16::to_f64, f16::from_f64;
    bf16: bf16::to_f64, bf16::from_f64;
}

/// Runs the body with `$float` being the type of floats that a [`DType`] names.
macro_rules! with_float {
    ($dtype:expr, $float:ident => $body:expr) => {
        match $dtype {
            DType::F64 => {
                type $float = f64;
                $body
            }
            DType::F16 => {
                type $float = crate::num::f16;
                $body
            }
            DType::Bf16 => {
                type $float = crate::num::bf16;
                $body
            }
            _ => {
                type $float = f32;
                $body
            }
        }
    };
}
pub(super) use with_float;
