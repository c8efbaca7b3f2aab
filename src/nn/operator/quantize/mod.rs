//! Floats to codes and back, as ONNX has it.

mod scales;

use self::scales::{Grain, dequantize_codes, quantize_codes};
use super::facts::check_arity;
use super::{Attributes, Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::{Workspace, min_max, quantize_u8};
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, View, ViewMut};
use crate::num::{F4E2M1, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, SmallFloat, affine_qparams, bf16, dequantize, f16, quantize};
use crate::tensor::{DType, Shape};

/// Element `i` of floats, or of i32, as f32.
fn float(x: &View<'_>, i: usize) -> f32 {
    match x.dtype {
        DType::F32 => x.f32()[i],
        DType::F16 => x.as_slice::<f16>()[i].to_f32(),
        DType::Bf16 => x.as_slice::<bf16>()[i].to_f32(),
        DType::F8E8M0 => F8E8M0::from_bits(x.bytes[i]).to_f32(),
        _ => x.as_slice::<i32>()[i] as f32,
    }
}

/// Element `i` of codes that are integers.
fn integer(x: &View<'_>, i: usize) -> i32 {
    match x.dtype {
        DType::U8 | DType::U4 | DType::U2 => x.bytes[i].into(),
        DType::I8 | DType::I4 | DType::I2 => (x.bytes[i] as i8).into(),
        DType::U16 => x.as_slice::<u16>()[i].into(),
        DType::I16 => x.as_slice::<i16>()[i].into(),
        _ => x.as_slice::<i32>()[i],
    }
}

/// Element `i` of codes that are small floats.
fn small_float(x: &View<'_>, i: usize) -> f32 {
    let bits = x.bytes[i];
    match x.dtype {
        DType::F8E4M3 => F8E4M3::from_bits(bits).to_f32(),
        DType::F8E4M3Fnuz => F8E4M3Fnuz::from_bits(bits).to_f32(),
        DType::F8E5M2 => F8E5M2::from_bits(bits).to_f32(),
        DType::F8E5M2Fnuz => F8E5M2Fnuz::from_bits(bits).to_f32(),
        _ => F4E2M1::from_bits(bits).to_f32(),
    }
}

fn is_small_float(dtype: DType) -> bool {
    matches!(dtype, DType::F8E4M3 | DType::F8E4M3Fnuz | DType::F8E5M2 | DType::F8E5M2Fnuz | DType::F4E2M1)
}

/// Smallest and largest code of an integer type that is quantized to.
fn bounds(dtype: DType) -> Option<(i32, i32)> {
    match dtype {
        DType::U8 | DType::U4 | DType::U2 | DType::U16 => Some((0, (1 << dtype.bits()) - 1)),
        DType::I8 | DType::I4 | DType::I2 | DType::I16 => Some((-(1 << (dtype.bits() - 1)), (1 << (dtype.bits() - 1)) - 1)),
        _ => None,
    }
}

/// Stores a code of an integer type.
fn store(y: &mut ViewMut<'_>, i: usize, code: i32) {
    match y.dtype {
        DType::U16 => y.as_mut_slice::<u16>()[i] = code as u16,
        DType::I16 => y.as_mut_slice::<i16>()[i] = code as i16,
        _ => y.bytes[i] = code as u8,
    }
}

/// ONNX QuantizeLinear: `y = clamp(round(x / scale) + zero_point)`, halves to even, per tensor, axis or block; small floats
/// are rounded to their nearest number instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeLinear {
    grain: Grain,
    dtype: Option<DType>,
    saturate: bool,
}

impl QuantizeLinear {
    /// With a scale for each entry of `axis`, where there is more than one; with a scale for each `block` entries unless it is
    /// 0. The codes are of the zero point's type, or `dtype`, or u8.
    pub fn new(axis: i64, block: usize, dtype: Option<DType>) -> Self {
        QuantizeLinear { grain: Grain { axis, block }, dtype, saturate: true }
    }

    /// Whether what lies beyond a small float of 8 bits becomes the largest of its sign.
    #[must_use]
    pub fn with_saturation(self, saturate: bool) -> Self {
        QuantizeLinear { saturate, ..self }
    }
}

impl Operation for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn attributes(&self) -> Attributes {
        self.grain.attributes().with_some("output_dtype", self.dtype).with_other("saturate", self.saturate, true)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 3)?;
        for dtype in inputs[..2].iter().flatten() {
            if !matches!(dtype, DType::F32 | DType::F16 | DType::Bf16 | DType::I32 | DType::F8E8M0) {
                return Err(Error::Type { what: "input of QuantizeLinear".into(), expected: "f32, f16, bf16 or i32", got: dtype.name() });
            }
        }
        let given = inputs.get(2).copied().flatten();
        let dtype = given.or(self.dtype).unwrap_or(DType::U8);
        if self.dtype.is_some_and(|asked| asked != dtype) || (bounds(dtype).is_none() && !is_small_float(dtype)) {
            let expected = "an integer of 2 to 16 bits or a small float, the same as `output_dtype`";
            return Err(Error::Type { what: "zero point of QuantizeLinear".into(), expected, got: dtype.name() });
        }
        Ok(vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        self.grain.scales(facts.shape(0)?.dims(), facts.shape(1)?.dims())?;
        check_zero_points(facts)?;
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, scale, zero_point, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2), outputs.get(0));
        let scales = self.grain.placed(inputs, &x, &scale)?;
        if let (DType::F32, DType::F32, Some(along)) = (x.dtype, scale.dtype, scales.along())
            && scale.f32().iter().all(|&scale| scale.is_finite() && scale > 0.0)
        {
            let (x, scale, along) = (x.f32(), scale.f32(), (&scales, along));
            let zero = zero_point.map_or(&[][..], |zero| zero.bytes);
            match y.dtype {
                DType::U8 => {
                    quantize_codes(x, y.bytes, along, (scale, zero), threads);
                    return Ok(());
                }
                DType::I8 => {
                    quantize_codes::<i8>(x, y.as_mut_slice(), along, (scale, bytemuck::cast_slice(zero)), threads);
                    return Ok(());
                }
                _ => {}
            }
        }
        let zero = |at: usize| zero_point.as_ref().map_or(0, |zero| integer(zero, at));
        if let Some((qmin, qmax)) = bounds(y.dtype) {
            for i in 0..x.len() {
                let at = scales.index(i);
                store(&mut y, i, quantize(float(&x, i), float(&scale, at), zero(at), qmin, qmax));
            }
            return Ok(());
        }
        let (dtype, saturate) = (y.dtype, self.saturate);
        for (i, y) in y.bytes.iter_mut().enumerate() {
            let value = float(&x, i) / float(&scale, scales.index(i));
            *y = match dtype {
                DType::F8E4M3 => F8E4M3::from_f32(value, saturate).to_bits(),
                DType::F8E4M3Fnuz => F8E4M3Fnuz::from_f32(value, saturate).to_bits(),
                DType::F8E5M2 => F8E5M2::from_f32(value, saturate).to_bits(),
                DType::F8E5M2Fnuz => F8E5M2Fnuz::from_f32(value, saturate).to_bits(),
                _ => F4E2M1::from_f32(value, true).to_bits(),
            };
        }
        Ok(())
    }
}

/// Whether the zero points, if there are any, are as many as the scales.
fn check_zero_points(facts: &Facts<'_>) -> Result<()> {
    if facts.has(2) && facts.shape(2)?.elements() != facts.shape(1)?.elements() {
        let expected = format!("{:?}, that of the scale", facts.shape(1)?);
        return Err(Error::shape("zero point", expected, facts.shape(2)?.dims()));
    }
    Ok(())
}

/// ONNX DequantizeLinear: `y = (x - zero_point) · scale`, per tensor, axis or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DequantizeLinear {
    grain: Grain,
    dtype: Option<DType>,
}

impl DequantizeLinear {
    /// As [`QuantizeLinear::new`]; the result is of type `dtype`, or of the scale's.
    pub fn new(axis: i64, block: usize, dtype: Option<DType>) -> Self {
        DequantizeLinear { grain: Grain { axis, block }, dtype }
    }
}

impl Operation for DequantizeLinear {
    fn name(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn attributes(&self) -> Attributes {
        self.grain.attributes().with_some("output_dtype", self.dtype)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 2, 3)?;
        let (x, scale) = (inputs[0].unwrap_or(DType::U8), inputs[1].unwrap_or(DType::F32));
        if bounds(x).is_none() && !is_small_float(x) && x != DType::I32 {
            let expected = "an integer of 2 to 32 bits or a small float";
            return Err(Error::Type { what: "input of DequantizeLinear".into(), expected, got: x.name() });
        }
        if let Some(zero_point) = inputs.get(2).copied().flatten().filter(|&dtype| dtype != x) {
            return Err(Error::Type { what: "zero point of DequantizeLinear".into(), expected: x.name(), got: zero_point.name() });
        }
        let y = self.dtype.unwrap_or(scale);
        if !matches!(scale, DType::F32 | DType::F16 | DType::Bf16 | DType::F8E8M0) || !matches!(y, DType::F32 | DType::F16 | DType::Bf16) {
            let got = if matches!(y, DType::F32 | DType::F16 | DType::Bf16) { scale } else { y };
            return Err(Error::Type { what: "scale of DequantizeLinear".into(), expected: "f32, f16 or bf16", got: got.name() });
        }
        Ok(vec![y])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        self.grain.scales(facts.shape(0)?.dims(), facts.shape(1)?.dims())?;
        check_zero_points(facts)?;
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, scale, zero_point, mut y) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2), outputs.get(0));
        let scales = self.grain.placed(inputs, &x, &scale)?;
        if let (DType::F32, DType::F32, Some(along)) = (y.dtype, scale.dtype, scales.along()) {
            let (scale, along) = (scale.f32(), (&scales, along));
            let zero = zero_point.map_or(&[][..], |zero| zero.bytes);
            match x.dtype {
                DType::U8 => {
                    dequantize_codes(x.bytes, y.f32(), along, (scale, zero), threads);
                    return Ok(());
                }
                DType::I8 => {
                    dequantize_codes::<i8>(x.as_slice(), y.f32(), along, (scale, bytemuck::cast_slice(zero)), threads);
                    return Ok(());
                }
                _ => {}
            }
        }
        let small = is_small_float(x.dtype);
        let value = |i: usize| {
            let at = scales.index(i);
            if small {
                return small_float(&x, i) * float(&scale, at);
            }
            dequantize(integer(&x, i), float(&scale, at), zero_point.as_ref().map_or(0, |zero| integer(zero, at)))
        };
        match y.dtype {
            DType::F16 => y.as_mut_slice::<f16>().iter_mut().enumerate().for_each(|(i, y)| *y = f16::from_f32(value(i))),
            DType::Bf16 => y.as_mut_slice::<bf16>().iter_mut().enumerate().for_each(|(i, y)| *y = bf16::from_f32(value(i))),
            _ => y.f32().iter_mut().enumerate().for_each(|(i, y)| *y = value(i)),
        }
        Ok(())
    }
}

/// ONNX DynamicQuantizeLinear: the codes, scale and zero point of `x` by its own range, asymmetric in u8.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DynamicQuantizeLinear;

impl Operation for DynamicQuantizeLinear {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, 1)?;
        match inputs[0] {
            Some(DType::F32) => Ok(vec![DType::U8, DType::F32, DType::U8]),
            other => {
                let got = other.map_or("nothing", DType::name);
                Err(Error::Type { what: "input of DynamicQuantizeLinear".into(), expected: "f32", got })
            }
        }
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let scalar = Shape::new(Vec::new())?;
        Ok(vec![facts.shape(0)?.clone(), scalar.clone(), scalar])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let x = inputs.need(0)?.f32();
        let range = min_max(x);
        if !range.finite {
            let index = x.iter().position(|x| !x.is_finite()).unwrap_or_default();
            return Err(Error::NonFinite { what: "input".into(), index, value: x[index] });
        }
        let range = range.closed();
        let (scale, zero_point) = affine_qparams(range.min, range.max, 0, 255, false);
        quantize_u8(x, scale, zero_point, 0, 255, outputs.get(0).bytes)?;
        outputs.get(1).f32()[0] = scale;
        outputs.get(2).bytes[0] = zero_point as u8;
        Ok(())
    }
}
