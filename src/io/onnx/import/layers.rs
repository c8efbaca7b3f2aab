//! Operators whose weights are constants become layers, which can be quantized.

use super::call::{Built, Call};
use super::codes::WeightCodes;
use crate::error::{Error, Result};
use crate::io::onnx::attribute::Attributes;
use crate::kernels::{Conv2dGeometry, Padding};
use crate::nn::operator::{AutoPad, Windows};
use crate::nn::reorder::nchw_to_nhwc;
use crate::nn::{BatchNorm2d, Conv2d, ConvTranspose2d, Direction, Embedding, GateActivation, Gru, Linear, Lstm, RecurrentOptions};
use crate::tensor::{QuantizedTensor, Tensor};

/// The attributes of a convolution, and of a pooling.
#[derive(Debug, Clone)]
pub(super) struct WindowAttributes {
    pub kernel: Option<Vec<i64>>,
    pub strides: Option<Vec<i64>>,
    pub pads: Option<Vec<i64>>,
    pub dilations: Option<Vec<i64>>,
    pub auto_pad: AutoPad,
}

impl WindowAttributes {
    pub fn take(attributes: &mut Attributes) -> Result<Self> {
        Ok(WindowAttributes {
            kernel: attributes.ints("kernel_shape")?,
            strides: attributes.ints("strides")?,
            pads: attributes.ints("pads")?,
            dilations: attributes.ints("dilations")?,
            auto_pad: attributes.choice(
                "auto_pad",
                &[
                    ("NOTSET", AutoPad::NotSet),
                    ("VALID", AutoPad::Valid),
                    ("SAME_UPPER", AutoPad::SameUpper),
                    ("SAME_LOWER", AutoPad::SameLower),
                ],
            )?,
        })
    }

    /// Number of spatial axes, by whatever tells of it; two where nothing does.
    pub fn axes(&self, call: &Call<'_>) -> Result<usize> {
        let lists = [(&self.kernel, 1), (&self.strides, 1), (&self.dilations, 1), (&self.pads, 2)];
        let by_list = lists.into_iter().find_map(|(list, each)| Some(list.as_ref()?.len() / each));
        let by_rank = [0, 1].into_iter().find_map(|i| call.rank(i)?.checked_sub(2));
        Ok(by_list.or(by_rank).unwrap_or(2))
    }

    /// The windows of an operator over `axes` spatial axes.
    pub fn windows(&self, axes: usize, ceil_mode: bool) -> Result<Windows> {
        let given = |what, list: &Option<Vec<i64>>, count| match list {
            Some(_) => WindowAttributes::numbers(what, list.as_ref(), count, 0),
            None => Ok(Vec::new()),
        };
        let strides = given("strides", &self.strides, axes)?;
        let dilations = given("dilations", &self.dilations, axes)?;
        let pads = given("pads", &self.pads, 2 * axes)?;
        let windows = Windows::new().with_strides(strides).with_dilations(dilations).with_ceil_mode(ceil_mode);
        Ok(if self.auto_pad == AutoPad::NotSet { windows.with_pads(pads) } else { windows.with_auto_pad(self.auto_pad) })
    }

    /// A list of `count` numbers from 0 up.
    pub fn numbers(what: &'static str, list: Option<&Vec<i64>>, count: usize, default: usize) -> Result<Vec<usize>> {
        let Some(list) = list else { return Ok(vec![default; count]) };
        if list.len() != count {
            return Err(Error::length(format!("attribute `{what}`"), count, list.len()));
        }
        list.iter().map(|&x| usize::try_from(x).map_err(|_| Error::parameter(what, x, "must not be negative"))).collect()
    }

    /// The padding, begins and then ends, where it does not depend on the input's size and none of it takes away.
    pub fn fixed_pads(&self, kernel: &[usize], strides: &[usize], dilations: &[usize]) -> Result<Option<Vec<usize>>> {
        let axes = kernel.len();
        Ok(match self.auto_pad {
            AutoPad::NotSet if self.pads.iter().flatten().any(|&pad| pad < 0) => None,
            AutoPad::NotSet => Some(WindowAttributes::numbers("pads", self.pads.as_ref(), 2 * axes, 0)?),
            AutoPad::Valid => Some(vec![0; 2 * axes]),
            // With a stride or a kernel of 1 the padding is the same for all sizes.
            mode if strides.iter().zip(kernel).all(|(&stride, &taps)| stride == 1 || taps == 1) => {
                let total = |i: usize| kernel[i].saturating_sub(1).saturating_mul(dilations[i]);
                let begin = |i: usize| if mode == AutoPad::SameUpper { total(i) / 2 } else { total(i).div_ceil(2) };
                Some((0..axes).map(begin).chain((0..axes).map(|i| total(i) - begin(i))).collect())
            }
            _ => None,
        })
    }

    /// The padding of a convolution of images, of which one spatial axis is a row; `None` where some of it takes away.
    pub fn padding(&self, kernel: &[usize], strides: &[usize], dilations: &[usize]) -> Result<Option<Padding>> {
        Ok(match (self.fixed_pads(kernel, strides, dilations)?.as_deref(), self.auto_pad) {
            (Some(&[left, right]), _) => Some(Padding::Fixed([0, left, 0, right])),
            (Some(&[top, left, bottom, right]), _) => Some(Padding::Fixed([top, left, bottom, right])),
            // One row of weights over one row of pixels gets nothing above or below.
            (None, AutoPad::SameUpper) => Some(Padding::SameUpper),
            (None, AutoPad::SameLower) => Some(Padding::SameLower),
            _ => None,
        })
    }
}

/// A convolution with constant weights over one or two spatial axes.
pub(super) fn conv(call: &Call<'_>, windows: &WindowAttributes, groups: i64) -> Result<Option<Built>> {
    let (Some(weight), Some(bias)) = (call.constant::<f32>(1), call.optional_constant::<f32>(2)) else {
        return Ok(None);
    };
    let spatial = weight.dims().len().saturating_sub(2);
    if !(1..=2).contains(&spatial) || weight.is_empty() {
        return Ok(None);
    }
    let kernel = &weight.dims()[2..];
    let said = WindowAttributes::numbers("kernel_shape", windows.kernel.as_ref(), spatial, 0)?;
    if windows.kernel.is_some() && said != kernel {
        return Err(Error::shape("weight", format!("a kernel of {said:?}, as `kernel_shape` says"), weight.dims()));
    }
    let strides = WindowAttributes::numbers("strides", windows.strides.as_ref(), spatial, 1)?;
    let dilations = WindowAttributes::numbers("dilations", windows.dilations.as_ref(), spatial, 1)?;
    let Some(padding) = windows.padding(kernel, &strides, &dilations)? else { return Ok(None) };
    let groups = usize::try_from(groups).map_err(|_| Error::parameter("attribute `group`", groups, "must not be negative"))?;
    let (out, inner) = (weight.dims()[0], weight.dims()[1]);
    let in_channels = inner.checked_mul(groups).ok_or_else(|| Error::parameter("attribute `group`", groups, "is too large to address"))?;
    // One spatial axis is a row of an image.
    let two = |list: &[usize], first: usize| if spatial == 1 { [first, list[0]] } else { [list[0], list[1]] };
    let kernel = two(kernel, 1);
    let geometry = Conv2dGeometry::new(in_channels, out, kernel)
        .with_stride(two(&strides, 1))
        .with_dilation(two(&dilations, 1))
        .with_padding(padding)
        .with_groups(groups);
    let dims = [out, inner, kernel[0], kernel[1]];
    let conv = Conv2d::new(geometry, weight.reshape(dims)?, bias.cloned())?;
    let codes = call.weights(1).map(|codes| codes.weight(&dims)).transpose()?.flatten();
    Ok(Some(if spatial == 1 { Built::in_row(conv.into()) } else { Built::of(conv, &[0]) }.with_weights(codes)))
}

/// A transposed convolution with constant weights over two spatial axes and padding that does not depend on the input's size.
pub(super) fn conv_transpose(call: &Call<'_>, windows: &WindowAttributes, groups: i64, output_padding: &[usize]) -> Result<Option<Built>> {
    let (Some(weight), Some(bias)) = (call.constant::<f32>(1), call.optional_constant::<f32>(2)) else {
        return Ok(None);
    };
    let &[in_channels, per_group, kh, kw] = weight.dims() else { return Ok(None) };
    if weight.is_empty() || !matches!(windows.auto_pad, AutoPad::NotSet | AutoPad::Valid) {
        return Ok(None);
    }
    let numbers = WindowAttributes::numbers;
    let strides = numbers("strides", windows.strides.as_ref(), 2, 1)?;
    let dilations = numbers("dilations", windows.dilations.as_ref(), 2, 1)?;
    let Some(padding) = windows.padding(&[kh, kw], &strides, &dilations)? else { return Ok(None) };
    let groups = usize::try_from(groups).map_err(|_| Error::parameter("attribute `group`", groups, "must not be negative"))?;
    let out = per_group.checked_mul(groups).ok_or_else(|| Error::parameter("attribute `group`", groups, "is too large to address"))?;
    let geometry = Conv2dGeometry::new(in_channels, out, [kh, kw])
        .with_stride([strides[0], strides[1]])
        .with_dilation([dilations[0], dilations[1]])
        .with_padding(padding)
        .with_groups(groups);
    let conv = ConvTranspose2d::new(geometry, weight.clone(), bias.cloned())?.with_output_padding([output_padding[0], output_padding[1]]);
    Ok(Some(Built::of(conv, &[0])))
}

/// Rows of a constant table.
pub(super) fn embedding(call: &Call<'_>, axis: i64) -> Result<Option<Built>> {
    match call.constant::<f32>(0) {
        Some(table) if axis == 0 && table.dims().len() == 2 && call.value(1).is_none() => {
            Ok(Some(Built::of(Embedding::new(table.clone())?, &[1])))
        }
        _ => Ok(None),
    }
}

/// `alpha A B + beta C` with constant `B`, and `C` a constant row or left out.
pub(super) fn gemm(call: &Call<'_>, alpha: f32, beta: f32, transposed_b: bool) -> Result<Option<Built>> {
    let (Some(b), Some(c)) = (call.constant::<f32>(1), call.optional_constant::<f32>(2)) else {
        return Ok(None);
    };
    let &[rows, cols] = b.dims() else { return Ok(None) };
    let mut weight = if transposed_b { b.clone() } else { transposed(b, rows, cols)? };
    let out = weight.dims()[0];
    if alpha != 1.0 {
        weight.as_mut_slice().iter_mut().for_each(|w| *w *= alpha);
    }
    let bias = match c {
        None => None,
        Some(c) => match row(c, out) {
            Some(bias) => Some(Tensor::new([out], bias.into_iter().map(|x| beta * x).collect::<Vec<f32>>())?),
            None => return Ok(None),
        },
    };
    let codes = match call.weights(1).filter(|_| alpha == 1.0) {
        Some(codes) if transposed_b => codes.weight(weight.dims())?,
        Some(codes) => transposed_codes(codes, weight.dims())?,
        None => None,
    };
    Ok(Some(Built::of(Linear::new(weight, bias)?, &[0]).with_weights(codes)))
}

/// A product with a constant matrix, and the constant row that is added to it; `None` when they are no such things.
pub(super) fn linear(weight: &Tensor, codes: Option<&WeightCodes>, bias: Option<&Tensor>) -> Result<Option<Built>> {
    let &[k, n] = weight.dims() else { return Ok(None) };
    let bias = match bias {
        None => None,
        // A bias of more axes than the product would give the sum more axes too.
        Some(bias) => match row(bias, n).filter(|_| bias.dims().len() <= 1) {
            Some(bias) => Some(Tensor::new([n], bias)?),
            None => return Ok(None),
        },
    };
    let codes = codes.map(|codes| transposed_codes(codes, &[n, k])).transpose()?.flatten();
    Ok(Some(Built::of(Linear::new(transposed(weight, k, n)?, bias)?, &[0]).with_weights(codes)))
}

fn transposed_codes(codes: &WeightCodes, dims: &[usize]) -> Result<Option<QuantizedTensor<i8>>> {
    codes.transposed().map(|codes| codes.weight(dims)).transpose().map(Option::flatten)
}

/// The row of `n` entries that `tensor` adds to every row of a product; `None` when it is no single row.
fn row(tensor: &Tensor, n: usize) -> Option<Vec<f32>> {
    match *tensor.dims() {
        [ref front @ .., last] if front.iter().all(|&length| length == 1) && last == n => Some(tensor.as_slice().to_vec()),
        _ if tensor.len() == 1 => Some(vec![tensor.as_slice()[0]; n]),
        _ => None,
    }
}

fn transposed(tensor: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    let mut to = vec![0.0; tensor.len()];
    nchw_to_nhwc(tensor.as_slice(), [1, rows, 1, cols], &mut to)?;
    Tensor::new([cols, rows], to)
}

/// Batch norm in inference with constant parameters, for images.
pub(super) fn batch_norm(call: &Call<'_>, epsilon: f32) -> Result<Option<BatchNorm2d>> {
    let mut parameters = Vec::with_capacity(4);
    for i in 1..5 {
        match call.constant::<f32>(i) {
            Some(tensor) if tensor.dims().len() == 1 => parameters.push(tensor.clone()),
            _ => return Ok(None),
        }
    }
    let [weight, bias, mean, var] = <[Tensor; 4]>::try_from(parameters).expect("four were pushed");
    BatchNorm2d::new(weight, bias, mean, var, epsilon).map(Some)
}

/// What LSTM and GRU say of themselves, `functions` gates a direction; a state of length 0 when they leave it to the weights.
pub(in crate::io) fn recurrent_options(attributes: &mut Attributes, functions: usize) -> Result<RecurrentOptions> {
    let hidden = attributes.int_or("hidden_size", 0)?;
    let mut options = RecurrentOptions::new(usize::try_from(hidden).map_err(|_| attributes.error("hidden_size", "it is negative"))?);
    options.direction = attributes.choice(
        "direction",
        &[("forward", Direction::Forward), ("reverse", Direction::Reverse), ("bidirectional", Direction::Bidirectional)],
    )?;
    options.batch_first = attributes.flag_or("layout", false)?;
    options.clip = attributes.float("clip")?;
    let (alphas, betas) = (attributes.floats("activation_alpha")?, attributes.floats("activation_beta")?);
    let Some(names) = attributes.texts("activations")? else { return Ok(options) };
    let expected = functions * options.direction.count();
    if names.len() != expected {
        return Err(attributes.error("activations", format!("there are {}, {expected} expected", names.len())));
    }
    // The lists hold a number only for the functions that take one, in order.
    let (mut alphas, mut betas) = (alphas.into_iter().flatten(), betas.into_iter().flatten());
    for name in names {
        let mut alpha = |default: f32| alphas.next().unwrap_or(default);
        let mut beta = |default: f32| betas.next().unwrap_or(default);
        options.activations.push(match name.to_ascii_lowercase().as_str() {
            "sigmoid" => GateActivation::Sigmoid,
            "tanh" => GateActivation::Tanh,
            "relu" => GateActivation::Relu,
            "affine" => GateActivation::Affine(alpha(1.0), beta(0.0)),
            "leakyrelu" => GateActivation::LeakyRelu(alpha(0.01)),
            "thresholdedrelu" => GateActivation::ThresholdedRelu(alpha(1.0)),
            "scaledtanh" => GateActivation::ScaledTanh(alpha(1.0), beta(1.0)),
            "hardsigmoid" => GateActivation::HardSigmoid(alpha(0.2), beta(0.5)),
            "elu" => GateActivation::Elu(alpha(1.0)),
            "softsign" => GateActivation::Softsign,
            "softplus" => GateActivation::Softplus,
            other => return Err(attributes.error("activations", format!("there is no function {other}"))),
        });
    }
    Ok(options)
}

/// The constant weights of a recurrent layer with the state's length taken from them; `None` when one is not constant.
fn recurrent_weights<'c>(call: &'c Call<'_>, options: &mut RecurrentOptions) -> Option<(&'c Tensor, &'c Tensor, Option<&'c Tensor>)> {
    let (w, r, b) = (call.constant::<f32>(1)?, call.constant::<f32>(2)?, call.optional_constant::<f32>(3)?);
    if let (0, &[.., hidden]) = (options.hidden, r.dims()) {
        options.hidden = hidden;
    }
    Some((w, r, b))
}

pub(super) fn lstm(call: &Call<'_>, mut options: RecurrentOptions, coupled: bool) -> Result<Option<Built>> {
    let Some(peepholes) = call.optional_constant::<f32>(7) else { return Ok(None) };
    let Some((w, r, b)) = recurrent_weights(call, &mut options) else { return Ok(None) };
    Ok(Some(Built::of(Lstm::new(options, w, r, b, peepholes)?.with_coupled_gates(coupled), &[0, 4, 5, 6])))
}

pub(super) fn gru(call: &Call<'_>, mut options: RecurrentOptions, reset_after: bool) -> Result<Option<Built>> {
    let Some((w, r, b)) = recurrent_weights(call, &mut options) else { return Ok(None) };
    Ok(Some(Built::of(Gru::new(options, reset_after, w, r, b)?, &[0, 4, 5])))
}
