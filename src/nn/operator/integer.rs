//! Products of codes, as ONNX spells quantized models out.

use super::attributes::Attributes;
use super::facts::{broadcast_dims, check_arity};
use super::window::{Along, Windows};
use super::{Facts, Operation};
use crate::error::{Error, Result};
use crate::kernels::Workspace;
use crate::nn::view::{Inputs, Outputs, View};
use crate::num::{bf16, f16, quantize};
use crate::tensor::{DType, Shape};

/// A code of 8 bits, without its zero point.
fn code(x: &View<'_>, i: usize) -> i32 {
    if x.dtype == DType::I8 { (x.bytes[i] as i8).into() } else { x.bytes[i].into() }
}

/// Zero point `i` of those that there are: one, or one for each.
fn zero_point(zero: Option<&View<'_>>, i: usize) -> i32 {
    zero.map_or(0, |zero| code(zero, if zero.len() == 1 { 0 } else { i }))
}

fn scale(scale: &View<'_>, i: usize) -> f32 {
    let i = if scale.len() == 1 { 0 } else { i };
    match scale.dtype {
        DType::F16 => scale.as_slice::<f16>()[i].to_f32(),
        DType::Bf16 => scale.as_slice::<bf16>()[i].to_f32(),
        _ => scale.f32()[i],
    }
}

fn check_codes(inputs: &[Option<DType>], positions: &[usize]) -> Result<()> {
    for &i in positions {
        match inputs.get(i).copied().flatten() {
            None | Some(DType::U8 | DType::I8) => {}
            Some(other) => return Err(Error::Type { what: format!("input {i}"), expected: "u8 or i8", got: other.name() }),
        }
    }
    Ok(())
}

fn check_scales(inputs: &[Option<DType>], positions: &[usize]) -> Result<()> {
    for &i in positions {
        match inputs.get(i).copied().flatten() {
            None | Some(DType::F32 | DType::F16 | DType::Bf16) => {}
            Some(other) => return Err(Error::Type { what: format!("input {i}"), expected: "f32, f16 or bf16", got: other.name() }),
        }
    }
    Ok(())
}

/// Where a product's parts are among its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    /// Codes of both sides, and their zero points.
    codes: [usize; 2],
    zero_points: [usize; 2],
    /// Scales of both sides and the output, and the output's zero point.
    output: Option<([usize; 3], usize)>,
    bias: Option<usize>,
}

const INTEGER: Parts = Parts { codes: [0, 1], zero_points: [2, 3], output: None, bias: None };
const LINEAR: Parts = Parts { codes: [0, 3], zero_points: [2, 5], output: Some(([1, 4, 6], 7)), bias: Some(8) };

impl Parts {
    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        let (least, most) = if self.output.is_some() { (8, 9) } else { (2, 4) };
        check_arity(inputs, least, most)?;
        check_codes(inputs, &self.codes)?;
        check_codes(inputs, &self.zero_points)?;
        match self.output {
            None => Ok(vec![DType::I32]),
            Some((scales, zero_point)) => {
                check_scales(inputs, &scales)?;
                check_codes(inputs, &[zero_point])?;
                Ok(vec![inputs[zero_point].unwrap_or(DType::U8)])
            }
        }
    }

    /// Writes output `i`, whose sum this is, of channel (or row and column) `lhs` and `rhs`.
    fn store(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, i: usize, sum: i32, [lhs, rhs]: [usize; 2]) -> Result<()> {
        let mut y = outputs.get(0);
        let Some((scales, zero)) = self.output else {
            y.as_mut_slice::<i32>()[i] = sum;
            return Ok(());
        };
        let at = |i: usize, channel: usize| inputs.need(i).map(|view| scale(&view, channel));
        let multiplier = at(scales[0], lhs)? * at(scales[1], rhs)? / at(scales[2], 0)?;
        let bias = self.bias.and_then(|i| inputs.get(i)).map_or(0, |bias| bias.as_slice::<i32>()[rhs]);
        let (qmin, qmax) = if y.dtype == DType::I8 { (-128, 127) } else { (0, 255) };
        let value = sum.wrapping_add(bias) as f32 * multiplier;
        y.bytes[i] = quantize(value, 1.0, zero_point(inputs.get(zero).as_ref(), 0), qmin, qmax) as u8;
        Ok(())
    }
}

/// ONNX MatMulInteger (sums in i32) and QLinearMatMul (codes again), zero points per tensor, per row on the left, per column
/// on the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatMulInteger {
    parts: Parts,
}

impl MatMulInteger {
    /// MatMulInteger.
    pub fn new() -> Self {
        MatMulInteger { parts: INTEGER }
    }

    /// QLinearMatMul.
    pub fn quantized() -> Self {
        MatMulInteger { parts: Parts { bias: None, ..LINEAR } }
    }
}

impl Default for MatMulInteger {
    fn default() -> Self {
        MatMulInteger::new()
    }
}

/// `[m, k, n]` and the batch of both sides.
fn matrices(a: &[usize], b: &[usize]) -> Result<([usize; 3], Vec<usize>)> {
    let (&[ref batch_a @ .., m, k], &[ref batch_b @ .., inner, n]) = (a, b) else {
        return Err(Error::shape("operands of an integer product", "matrices", if a.len() < 2 { a } else { b }));
    };
    if inner != k {
        return Err(Error::shape("second matrix", format!("{k} rows, for a first of {a:?}"), b));
    }
    Ok(([m, k, n], broadcast_dims(batch_a, batch_b)?))
}

impl Operation for MatMulInteger {
    fn name(&self) -> &'static str {
        if self.parts.output.is_some() { "QLinearMatMul" } else { "MatMulInteger" }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        self.parts.infer_types(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let [a, b] = self.parts.codes;
        let ([m, _, n], mut batch) = matrices(facts.shape(a)?.dims(), facts.shape(b)?.dims())?;
        let mut counts = vec![(self.parts.zero_points[0], m), (self.parts.zero_points[1], n)];
        if let Some((scales, zero_point)) = self.parts.output {
            counts.extend([(scales[0], m), (scales[1], n), (scales[2], 1), (zero_point, 1)]);
        }
        for (i, count) in counts {
            if facts.has(i) && ![1, count].contains(&facts.shape(i)?.elements()) {
                let expected = format!("one element, or {count}");
                return Err(Error::shape(format!("input {i}"), expected, facts.shape(i)?.dims()));
            }
        }
        batch.extend([m, n]);
        Ok(vec![Shape::new(batch)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let [a, b] = [inputs.need(self.parts.codes[0])?, inputs.need(self.parts.codes[1])?];
        let zeros = self.parts.zero_points.map(|i| inputs.get(i));
        let ([m, k, n], batch) = matrices(a.dims, b.dims)?;
        let matrix = |dims: &[usize], mut o: usize| {
            let own = &dims[..dims.len() - 2];
            let (mut at, mut stride) = (0, 1);
            for (axis, &length) in batch.iter().enumerate().rev() {
                let i = o % length;
                o /= length;
                if let Some(axis) = (axis + own.len()).checked_sub(batch.len()) {
                    at += if own[axis] == 1 { 0 } else { i * stride };
                    stride *= own[axis];
                }
            }
            at
        };
        for o in 0..batch.iter().product() {
            let (first, second) = (matrix(a.dims, o) * m * k, matrix(b.dims, o) * k * n);
            for row in 0..m {
                for column in 0..n {
                    let (za, zb) = (zero_point(zeros[0].as_ref(), row), zero_point(zeros[1].as_ref(), column));
                    let term = |s: usize| (code(&a, first + row * k + s) - za) * (code(&b, second + s * n + column) - zb);
                    let sum = (0..k).fold(0i32, |sum, s| sum.wrapping_add(term(s)));
                    self.parts.store(inputs, outputs, (o * m + row) * n + column, sum, [row, column])?;
                }
            }
        }
        Ok(())
    }
}

/// ONNX ConvInteger (sums in i32) and QLinearConv (codes again), over any number of spatial axes; padding is the zero point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvInteger {
    parts: Parts,
    windows: Windows,
    groups: usize,
}

impl ConvInteger {
    /// ConvInteger.
    pub fn new(windows: Windows, groups: usize) -> Self {
        ConvInteger { parts: INTEGER, windows, groups }
    }

    /// QLinearConv.
    pub fn quantized(windows: Windows, groups: usize) -> Self {
        ConvInteger { parts: LINEAR, windows, groups }
    }
}

impl ConvInteger {
    /// The windows along each spatial axis.
    fn axes(&self, x: &[usize], w: &[usize]) -> Result<Vec<Along>> {
        if x.len() < 3 || w.len() != x.len() {
            return Err(Error::shape("weight", format!("[out, in / groups, kernel..] of as many axes as {x:?}"), w));
        }
        if self.groups == 0 || !w[0].is_multiple_of(self.groups) || w[1].checked_mul(self.groups) != Some(x[1]) {
            let expected = format!("[out, {} / {}, kernel..], out a multiple of the groups", x[1], self.groups);
            return Err(Error::shape("weight", expected, w));
        }
        let spatial = x.len() - 2;
        self.windows.check(spatial)?;
        (0..spatial).map(|axis| self.windows.along(axis, spatial, w[2 + axis], x[2 + axis])).collect()
    }
}

impl Operation for ConvInteger {
    fn name(&self) -> &'static str {
        if self.parts.output.is_some() { "QLinearConv" } else { "ConvInteger" }
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with_windows(None, &self.windows).with_other("group", self.groups as i64, 1)
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        self.parts.infer_types(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let [x, w] = self.parts.codes;
        let axes = self.axes(facts.shape(x)?.dims(), facts.shape(w)?.dims())?;
        let channels = facts.shape(w)?.dims()[0];
        let mut counts = vec![(self.parts.zero_points[0], 1), (self.parts.zero_points[1], channels)];
        if let Some((scales, zero_point)) = self.parts.output {
            counts.extend([(scales[0], 1), (scales[1], channels), (scales[2], 1), (zero_point, 1)]);
        }
        counts.extend(self.parts.bias.map(|i| (i, channels)));
        for (i, count) in counts {
            let found = if facts.has(i) { facts.shape(i)?.elements() } else { count };
            if found != count && (found != 1 || Some(i) == self.parts.bias) {
                return Err(Error::shape(format!("input {i}"), format!("[{count}]"), facts.shape(i)?.dims()));
            }
        }
        let mut dims = vec![facts.shape(x)?.dims()[0], channels];
        dims.extend(axes.iter().map(|axis| axis.outputs));
        Ok(vec![Shape::new(dims)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, _: usize) -> Result<()> {
        let [x, w] = [inputs.need(self.parts.codes[0])?, inputs.need(self.parts.codes[1])?];
        let zeros = self.parts.zero_points.map(|i| inputs.get(i));
        let axes = self.axes(x.dims, w.dims)?;
        let (channels, inner) = (w.dims[0], w.dims[1]);
        let (pixels, taps): (usize, usize) = (axes.iter().map(|a| a.outputs).product(), axes.iter().map(|a| a.kernel).product());
        // Taps of no channel add nothing, and no weight stands behind their number.
        let taps = if inner == 0 { 0 } else { taps };
        let size: usize = axes.iter().map(|a| a.length).product();
        let zero_x = zero_point(zeros[0].as_ref(), 0);
        for i in 0..x.dims[0] * channels * pixels {
            let (image, channel, pixel) = (i / pixels / channels, i / pixels % channels, i % pixels);
            let zero_w = zero_point(zeros[1].as_ref(), channel);
            let first = channel / (channels / self.groups) * inner;
            let mut sum = 0i32;
            for tap in 0..taps {
                // Where this tap lies in the input; outside, the code is the zero point and adds nothing.
                let (mut at, mut stride, mut p, mut t) = (Some(0), 1, pixel, tap);
                for axis in axes.iter().rev() {
                    let position = (p % axis.outputs) * axis.stride + (t % axis.kernel) * axis.dilation;
                    at = at.zip(position.checked_sub(axis.before).filter(|&q| q < axis.length)).map(|(at, q)| at + q * stride);
                    (p, t, stride) = (p / axis.outputs, t / axis.kernel, stride * axis.length);
                }
                let Some(at) = at else { continue };
                for c in 0..inner {
                    let left = code(&x, (image * x.dims[1] + first + c) * size + at) - zero_x;
                    sum = sum.wrapping_add(left * (code(&w, (channel * inner + c) * taps + tap) - zero_w));
                }
            }
            self.parts.store(inputs, outputs, i, sum, [0, channel])?;
        }
        Ok(())
    }
}
