//! temporary: the face over plain loops
#![allow(missing_docs)]
use crate::error::{Error, Result};
use crate::num::{NonFinite, affine_qparams, quantize};
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    Scalar,
}
impl Isa {
    pub fn best() -> Isa {
        Isa::Scalar
    }
    pub fn available() -> Vec<Isa> {
        vec![Isa::Scalar]
    }
    pub fn name(self) -> &'static str {
        "scalar"
    }
    pub fn is_available(self) -> bool {
        true
    }
}
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
}
impl<'a, T> Matrix<'a, T> {
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        if data.len() != rows * cols {
            return Err(Error::length("lhs", rows * cols, data.len()));
        }
        Ok(Matrix { data, rows, cols })
    }
}
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    cols: usize,
}
impl<'a, T> MatrixMut<'a, T> {
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        if data.len() != rows * cols {
            return Err(Error::length("dst", rows * cols, data.len()));
        }
        Ok(MatrixMut { data, cols })
    }
}
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    #[default]
    None,
    Relu,
    Clamp {
        lo: f32,
        hi: f32,
    },
}
#[derive(Debug, Default)]
pub struct Workspace;
#[derive(Debug, Clone, Copy)]
pub enum WeightLayout {
    Nk,
    Kn,
}
#[derive(Debug, Clone)]
pub struct PackedWeights {
    codes: Vec<i8>,
    n: usize,
    k: usize,
}
impl PackedWeights {
    pub fn pack_for(_: Isa, codes: &[i8], n: usize, k: usize, _: WeightLayout) -> Result<Self> {
        if k > 65536 {
            return Err(Error::Accumulator { k, limit: 65536 });
        }
        Ok(PackedWeights { codes: codes.to_vec(), n, k })
    }
    pub fn n(&self) -> usize {
        self.n
    }
    pub fn k(&self) -> usize {
        self.k
    }
    pub fn kernel_name(&self) -> &'static str {
        "plain"
    }
    pub fn bytes(&self) -> usize {
        self.codes.len()
    }
    pub fn unpack(&self) -> Vec<i8> {
        self.codes.clone()
    }
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationRule {
    pub qmin: i32,
    pub qmax: i32,
    pub symmetric: bool,
    pub non_finite: NonFinite,
}
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    pub weight_scale: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
}
#[non_exhaustive]
#[derive(Debug, Clone, Copy)]
pub enum RangeOf {
    Tensor,
    Row,
}
fn codes(x: &[f32], rule: &ActivationRule, at: usize) -> Result<(Vec<i32>, f32, i32)> {
    let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
    for (i, &v) in x.iter().enumerate() {
        if !v.is_finite() {
            if rule.non_finite == NonFinite::Error {
                return Err(Error::NonFinite { what: "input".into(), index: at + i, value: v });
            }
            continue;
        }
        lo = lo.min(v);
        hi = hi.max(v);
    }
    if lo > hi {
        (lo, hi) = (0.0, 0.0);
    }
    let (s, z) = affine_qparams(lo, hi, rule.qmin, rule.qmax, rule.symmetric);
    Ok((x.iter().map(|&v| quantize(v, s, z, rule.qmin, rule.qmax)).collect(), s, z))
}
#[allow(clippy::too_many_arguments)]
pub fn gemm_dynamic(
    lhs: Matrix<'_, f32>,
    _: RangeOf,
    rule: &ActivationRule,
    w: &PackedWeights,
    e: &Epilogue<'_>,
    dst: MatrixMut<'_, f32>,
    _: &mut Workspace,
    _: usize,
) -> Result<()> {
    for r in 0..lhs.rows {
        let (q, s, z) = codes(&lhs.data[r * lhs.cols..][..lhs.cols], rule, r * lhs.cols)?;
        for n in 0..w.n {
            let acc: i32 = (0..w.k).map(|k| (q[k] - z) * i32::from(w.codes[n * w.k + k])).sum();
            let ws = if e.weight_scale.len() == 1 { e.weight_scale[0] } else { e.weight_scale[n] };
            dst.data[r * dst.cols + n] = acc as f32 * (s * ws) + e.bias.map_or(0.0, |b| b[n]);
        }
    }
    Ok(())
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv2dGeometry {
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 4],
    pub dilation: [usize; 2],
    pub groups: usize,
}
impl Conv2dGeometry {
    pub fn new(in_channels: usize, out_channels: usize, kernel: [usize; 2]) -> Self {
        Conv2dGeometry { in_channels, out_channels, kernel, stride: [1; 2], padding: [0; 4], dilation: [1; 2], groups: 1 }
    }
    pub fn with_stride(mut self, s: [usize; 2]) -> Self {
        self.stride = s;
        self
    }
    pub fn with_padding(mut self, s: [usize; 4]) -> Self {
        self.padding = s;
        self
    }
    pub fn with_dilation(mut self, s: [usize; 2]) -> Self {
        self.dilation = s;
        self
    }
    pub fn with_groups(mut self, s: usize) -> Self {
        self.groups = s;
        self
    }
    pub fn validate(&self) -> Result<()> {
        Ok(())
    }
    pub fn output_size(&self, h: usize, w: usize) -> Result<[usize; 2]> {
        let f = |x: usize, p: usize, k: usize, s: usize, d: usize| {
            (x + p).checked_sub(d * (k - 1) + 1).map(|r| r / s + 1).ok_or_else(|| Error::parameter("kernel", k, "larger"))
        };
        Ok([
            f(h, self.padding[0] + self.padding[2], self.kernel[0], self.stride[0], self.dilation[0])?,
            f(w, self.padding[1] + self.padding[3], self.kernel[1], self.stride[1], self.dilation[1])?,
        ])
    }
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel[0], self.kernel[1]]
    }
    pub fn macs(&self, oh: usize, ow: usize) -> u64 {
        (oh * ow * self.weight_shape().iter().product::<usize>()) as u64
    }
    fn each(&self, shape: ImageShape, n: usize, mut f: impl FnMut(usize, usize, usize), mut out: impl FnMut(usize, usize)) -> Result<()> {
        let [oh, ow] = self.output_size(shape.h, shape.w)?;
        let (c, icg, ocg) = (self.in_channels, self.in_channels / self.groups, self.out_channels / self.groups);
        for y in 0..oh {
            for x in 0..ow {
                for o in 0..self.out_channels {
                    for i in 0..icg {
                        for ky in 0..self.kernel[0] {
                            for kx in 0..self.kernel[1] {
                                let (iy, ix) = (
                                    (y * self.stride[0] + ky * self.dilation[0]) as isize - self.padding[0] as isize,
                                    (x * self.stride[1] + kx * self.dilation[1]) as isize - self.padding[1] as isize,
                                );
                                if iy < 0 || ix < 0 || iy >= shape.h as isize || ix >= shape.w as isize {
                                    continue;
                                }
                                let ch = o / ocg * icg + i;
                                let at = match shape.layout {
                                    ImageLayout::Nchw => ((n * c + ch) * shape.h + iy as usize) * shape.w + ix as usize,
                                    ImageLayout::Nhwc => ((n * shape.h + iy as usize) * shape.w + ix as usize) * c + ch,
                                };
                                f(at, ((o * icg + i) * self.kernel[0] + ky) * self.kernel[1] + kx, 0);
                            }
                        }
                    }
                    out(((n * oh + y) * ow + x) * self.out_channels + o, o);
                }
            }
        }
        Ok(())
    }
}
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageLayout {
    Nchw,
    Nhwc,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub layout: ImageLayout,
}
#[derive(Debug)]
pub struct PackedConv2d {
    geometry: Conv2dGeometry,
    codes: Vec<i8>,
}
impl PackedConv2d {
    pub fn pack_for(_: Isa, geometry: &Conv2dGeometry, codes: &[i8]) -> Result<Self> {
        Ok(PackedConv2d { geometry: geometry.clone(), codes: codes.to_vec() })
    }
    pub fn geometry(&self) -> &Conv2dGeometry {
        &self.geometry
    }
    pub fn kernel_name(&self) -> &'static str {
        "plain"
    }
    pub fn bytes(&self) -> usize {
        self.codes.len()
    }
    pub fn unpack(&self) -> Vec<i8> {
        self.codes.clone()
    }
}
#[allow(clippy::too_many_arguments)]
pub fn conv2d_dynamic(
    input: &[f32],
    shape: ImageShape,
    rule: &ActivationRule,
    w: &PackedConv2d,
    e: &Epilogue<'_>,
    dst: &mut [f32],
    _: &mut Workspace,
    _: usize,
) -> Result<()> {
    let [oh, ow] = w.geometry.output_size(shape.h, shape.w)?;
    if dst.len() != shape.n * oh * ow * w.geometry.out_channels {
        return Err(Error::length("dst", 0, dst.len()));
    }
    let image = shape.h * shape.w * w.geometry.in_channels;
    for n in 0..shape.n {
        let (q, s, z) = codes(&input[n * image..][..image], rule, n * image)?;
        let acc = std::cell::Cell::new(0i32);
        w.geometry.each(
            shape,
            n,
            |at, k, _| acc.set(acc.get() + (q[at - n * image] - z) * i32::from(w.codes[k])),
            |at, o| {
                let ws = if e.weight_scale.len() == 1 { e.weight_scale[0] } else { e.weight_scale[o] };
                dst[at] = acc.get() as f32 * (s * ws) + e.bias.map_or(0.0, |b| b[o]);
                acc.set(0);
            },
        )?;
    }
    Ok(())
}
#[derive(Debug)]
pub struct PackedFloatWeights {
    w: Vec<f32>,
    n: usize,
    k: usize,
}
impl PackedFloatWeights {
    pub fn pack(w: &[f32], n: usize, k: usize, _: WeightLayout) -> Result<Self> {
        Ok(PackedFloatWeights { w: w.to_vec(), n, k })
    }
}
pub fn sgemm(
    lhs: Matrix<'_, f32>,
    w: &PackedFloatWeights,
    bias: Option<&[f32]>,
    _: Activation,
    dst: MatrixMut<'_, f32>,
    _: usize,
) -> Result<()> {
    for r in 0..lhs.rows {
        for n in 0..w.n {
            let acc: f32 = (0..w.k).map(|k| lhs.data[r * lhs.cols + k] * w.w[n * w.k + k]).sum();
            dst.data[r * dst.cols + n] = acc + bias.map_or(0.0, |b| b[n]);
        }
    }
    Ok(())
}
#[derive(Debug)]
pub struct PackedFloatConv2d {
    geometry: Conv2dGeometry,
    w: Vec<f32>,
}
impl PackedFloatConv2d {
    pub fn pack(g: &Conv2dGeometry, w: &[f32]) -> Result<Self> {
        Ok(PackedFloatConv2d { geometry: g.clone(), w: w.to_vec() })
    }
}
#[allow(clippy::too_many_arguments)]
pub fn conv2d_f32(
    input: &[f32],
    shape: ImageShape,
    w: &PackedFloatConv2d,
    bias: Option<&[f32]>,
    _: Activation,
    dst: &mut [f32],
    _: &mut Workspace,
    _: usize,
) -> Result<()> {
    for n in 0..shape.n {
        let acc = std::cell::Cell::new(0f32);
        w.geometry.each(
            shape,
            n,
            |at, k, _| acc.set(acc.get() + input[at] * w.w[k]),
            |at, o| {
                dst[at] = acc.get() + bias.map_or(0.0, |b| b[o]);
                acc.set(0.0);
            },
        )?;
    }
    Ok(())
}
