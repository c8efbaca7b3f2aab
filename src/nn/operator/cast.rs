//! From one element type to another.

use std::ops::RangeInclusive;

use super::attributes::{Attributes, CURRENT};
use super::{Facts, Operation, check_arity};
use crate::error::Result;
use crate::kernels::{Workspace, math};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::{
    F4E2M1, F6E2M3, F6E3M2, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, I2, I4, ScaleRounding, SmallFloat, U2, U4, bf16, f16,
};
use crate::tensor::{DType, Shape};

/// ONNX Cast and CastLike between any two element types.
///
/// - To a float: the nearest, halves to the even one (to 16 bits and less, of integers beyond 2^53, that of the nearest f64). To
///   [`F8E8M0`], by the rounding asked for.
/// - To an integer: from a float, the digits after the point are cut off; of what the type can't hold, the lowest bits in two's
///   complement (NaN is 0, and beyond 64 bits the bound is taken first).
/// - To a truth value: whether it is not zero, and NaN is not. From one: 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// `None`: that of the second input.
    to: Option<DType>,
    saturate: bool,
    rounding: ScaleRounding,
}

impl Cast {
    /// To `dtype`.
    pub fn new(dtype: DType) -> Self {
        Cast { to: Some(dtype), saturate: true, rounding: ScaleRounding::Up }
    }

    /// CastLike: to the type of a second input.
    pub fn like() -> Self {
        Cast { to: None, ..Cast::new(DType::F32) }
    }

    /// Whether what lies beyond a float of 8 bits becomes the largest of its sign, and not an infinity or NaN
    /// ([`SmallFloat::from_f32`]). Set unless told otherwise.
    #[must_use]
    pub fn with_saturation(self, saturate: bool) -> Self {
        Cast { saturate, ..self }
    }

    /// How to round to [`F8E8M0`]: up unless told otherwise.
    #[must_use]
    pub fn with_scale_rounding(self, rounding: ScaleRounding) -> Self {
        Cast { rounding, ..self }
    }

    /// The pairs that networks are full of, in vectors; says whether this is one.
    fn quick(x: &View<'_>, y: &mut ViewMut<'_>, threads: usize) -> bool {
        macro_rules! pairs {
            ($($from:ident($from_type:ty) => $to:ident($to_type:ty) $f:expr;)*) => {
                match (x.dtype, y.dtype) {
                    (from, to) if from == to => y.bytes.copy_from_slice(x.bytes),
                    $((DType::$from, DType::$to) => math::map(x.as_slice::<$from_type>(), y.as_mut_slice::<$to_type>(), threads, $f),)*
                    _ => return false,
                }
            };
        }
        pairs! {
            F32(f32) => F64(f64) |x| x.into();
            F32(f32) => F16(f16) f16::from_f32;
            F32(f32) => Bf16(bf16) bf16::from_f32;
            F32(f32) => Bool(u8) |x: f32| (x != 0.0).into();
            F32(f32) => I64(i64) |x| x as i64;
            F64(f64) => F32(f32) |x| x as f32;
            F16(f16) => F32(f32) f16::to_f32;
            Bf16(bf16) => F32(f32) bf16::to_f32;
            Bool(u8) => F32(f32) |x| x.into();
            Bool(u8) => I64(i64) |x| x.into();
            Bool(u8) => I32(i32) |x| x.into();
            // Straight to f32: by way of f64 they would be rounded twice.
            I64(i64) => F32(f32) |x| x as f32;
            U64(u64) => F32(f32) |x| x as f32;
            U64(u64) => F64(f64) |x| x as f64;
            I64(i64) => I32(i32) |x| x as i32;
            I64(i64) => Bool(u8) |x: i64| (x != 0).into();
            I32(i32) => I64(i64) |x| x.into();
            I32(i32) => F32(f32) |x| x as f32;
            U8(u8) => F32(f32) |x| x.into();
            I8(i8) => F32(f32) |x| x.into();
        }
        true
    }

    fn write(&self, numbers: &Numbers, y: &mut [u8], dtype: DType) {
        macro_rules! write {
            ({ $($float:ident($float_type:ty) $from_float:expr;)* } { $($integer:ident($integer_type:ty) $from_integer:expr;)* }) => {
                match (dtype, numbers) {
                    $(
                        (DType::$float, Numbers::Floats(x)) => put::<f64, $float_type>(x, y, $from_float),
                        (DType::$float, Numbers::Signed(x)) => put::<i64, $float_type>(x, y, |x| ($from_float)(x as f64)),
                        (DType::$float, Numbers::Unsigned(x)) => put::<u64, $float_type>(x, y, |x| ($from_float)(x as f64)),
                    )*
                    $(
                        (DType::$integer, Numbers::Floats(x)) => put::<f64, $integer_type>(x, y, |x| ($from_integer)(low_bits(x))),
                        (DType::$integer, Numbers::Signed(x)) => put::<i64, $integer_type>(x, y, |x| ($from_integer)(x as u64)),
                        (DType::$integer, Numbers::Unsigned(x)) => put::<u64, $integer_type>(x, y, $from_integer),
                    )*
                    (DType::Bool, Numbers::Floats(x)) => put::<f64, u8>(x, y, |x| (x != 0.0).into()),
                    (DType::Bool, Numbers::Signed(x)) => put::<i64, u8>(x, y, |x| (x != 0).into()),
                    (DType::Bool, Numbers::Unsigned(x)) => put::<u64, u8>(x, y, |x| (x != 0).into()),
                }
            };
        }
        let saturate = self.saturate;
        write! {{
            F32(f32) |x: f64| x as f32;
            F64(f64) |x: f64| x;
            F16(f16) |x: f64| f16::from_f32(to_odd(x));
            Bf16(bf16) |x: f64| bf16::from_f32(to_odd(x));
            F8E4M3(F8E4M3) |x: f64| F8E4M3::from_f32(to_odd(x), saturate);
            F8E4M3Fnuz(F8E4M3Fnuz) |x: f64| F8E4M3Fnuz::from_f32(to_odd(x), saturate);
            F8E5M2(F8E5M2) |x: f64| F8E5M2::from_f32(to_odd(x), saturate);
            F8E5M2Fnuz(F8E5M2Fnuz) |x: f64| F8E5M2Fnuz::from_f32(to_odd(x), saturate);
            F8E8M0(F8E8M0) |x: f64| F8E8M0::round(to_odd(x), self.rounding, saturate);
            F6E2M3(F6E2M3) |x: f64| F6E2M3::from_f32(to_odd(x), saturate);
            F6E3M2(F6E3M2) |x: f64| F6E3M2::from_f32(to_odd(x), saturate);
            F4E2M1(F4E2M1) |x: f64| F4E2M1::from_f32(to_odd(x), saturate);
            } {
            I64(i64) |x: u64| x as i64;
            I32(i32) |x: u64| x as i32;
            I16(i16) |x: u64| x as i16;
            I8(i8) |x: u64| x as i8;
            I4(I4) |x: u64| I4::from_low_bits(x as u8);
            I2(I2) |x: u64| I2::from_low_bits(x as u8);
            U64(u64) |x: u64| x;
            U32(u32) |x: u64| x as u32;
            U16(u16) |x: u64| x as u16;
            U8(u8) |x: u64| x as u8;
            U4(U4) |x: u64| U4::from_low_bits(x as u8);
            U2(U2) |x: u64| U2::from_low_bits(x as u8);
        }}
    }
}

/// Elements at a time.
const BLOCK: usize = 256;

/// Up to [`BLOCK`] elements as numbers that hold each of its kind exactly.
enum Numbers {
    Floats([f64; BLOCK]),
    Signed([i64; BLOCK]),
    Unsigned([u64; BLOCK]),
}

/// The f32 that is rounded to a narrower float as `x` would be: the nearest towards zero, with its last bit set if it is not `x`, so
/// that it lies on no boundary that `x` doesn't.
fn to_odd(x: f64) -> f32 {
    let y = x as f32;
    let back = f64::from(y);
    if back == x || x.is_nan() {
        return y;
    }
    // One bit less is the next number towards zero, of infinity too.
    f32::from_bits((y.to_bits() - u32::from(back.abs() > x.abs())) | 1)
}

/// A float's integer part in two's complement.
fn low_bits(x: f64) -> u64 {
    if x < 0.0 { x as i64 as u64 } else { x as u64 }
}

fn put<N: Copy, T: bytemuck::Pod>(numbers: &[N; BLOCK], y: &mut [u8], f: impl Fn(N) -> T) {
    bytemuck::cast_slice_mut(y).iter_mut().zip(numbers).for_each(|(y, &x)| *y = f(x));
}

fn take<T: bytemuck::Pod, N: Copy + Default>(x: &[u8], f: impl Fn(T) -> N) -> [N; BLOCK] {
    let mut numbers = [N::default(); BLOCK];
    numbers.iter_mut().zip(bytemuck::cast_slice(x)).for_each(|(number, &x)| *number = f(x));
    numbers
}

fn read(x: &[u8], dtype: DType) -> Numbers {
    macro_rules! read {
        ($($variant:ident($type:ty) $kind:ident $f:expr;)*) => {
            match dtype {
                $(DType::$variant => Numbers::$kind(take::<$type, _>(x, $f)),)*
            }
        };
    }
    read! {
        F32(f32) Floats f64::from;
        F64(f64) Floats |x| x;
        F16(f16) Floats f16::to_f64;
        Bf16(bf16) Floats bf16::to_f64;
        F8E4M3(F8E4M3) Floats |x| x.to_f32().into();
        F8E4M3Fnuz(F8E4M3Fnuz) Floats |x| x.to_f32().into();
        F8E5M2(F8E5M2) Floats |x| x.to_f32().into();
        F8E5M2Fnuz(F8E5M2Fnuz) Floats |x| x.to_f32().into();
        F8E8M0(F8E8M0) Floats |x| x.to_f32().into();
        F6E2M3(F6E2M3) Floats |x| x.to_f32().into();
        F6E3M2(F6E3M2) Floats |x| x.to_f32().into();
        F4E2M1(F4E2M1) Floats |x| x.to_f32().into();
        I64(i64) Signed |x| x;
        I32(i32) Signed i64::from;
        I16(i16) Signed i64::from;
        I8(i8) Signed i64::from;
        I4(I4) Signed |x| x.code().into();
        I2(I2) Signed |x| x.code().into();
        U64(u64) Unsigned |x| x;
        U32(u32) Unsigned u64::from;
        U16(u16) Unsigned u64::from;
        U8(u8) Unsigned u64::from;
        U4(U4) Unsigned |x| x.code().into();
        U2(U2) Unsigned |x| x.code().into();
        Bool(u8) Unsigned u64::from;
    }
}

impl Operation for Cast {
    fn name(&self) -> &'static str {
        if self.to.is_some() { "Cast" } else { "CastLike" }
    }

    fn attributes(&self) -> Attributes {
        let rounding = match self.rounding {
            ScaleRounding::Up => "up",
            ScaleRounding::Down => "down",
            ScaleRounding::Nearest => "nearest",
        };
        let attributes = Attributes::new().with_some("to", self.to).with_other("saturate", self.saturate, true);
        attributes.with_other("round_mode", rounding, "up")
    }

    fn opsets(&self) -> RangeInclusive<i64> {
        match (self.to, self.saturate) {
            (_, false) => 19..=28,
            (None, _) => 15..=28,
            _ => CURRENT,
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        let arity = if self.to.is_some() { 1 } else { 2 };
        check_arity(inputs, arity, arity)?;
        Ok(vec![self.to.or(inputs[arity - 1]).unwrap_or(DType::F32)])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, mut y) = (inputs.need(0)?, outputs.get(0));
        if Cast::quick(&x, &mut y, threads) {
            return Ok(());
        }
        let (from, to) = (x.dtype, y.dtype);
        for (x, y) in x.bytes.chunks(BLOCK * from.bytes()).zip(y.bytes.chunks_mut(BLOCK * to.bytes())) {
            self.write(&read(x, from), y, to);
        }
        Ok(())
    }
}
