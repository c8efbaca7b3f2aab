//! What a quantized layer rounds: its weights, and its input where it does so when it runs.

use crate::error::Result;
use crate::eval::histogram::Histogram;
use crate::kernels::{ActivationRule, Conv2dGeometry, LOW_BIT_RULE, RangeOf};
use crate::nn::recurrent::recurrent;
use crate::nn::reorder::transpose;
use crate::nn::weight_only::{Activations, StoredWeights};
use crate::nn::{Conv2d, ConvTranspose2d, Embedding, Layer, Linear, Projection};
use crate::num::{affine_qparams, dequantize, quantize};
use crate::quant::{Levels, QuantizedWeights, SparseSplit, StoredLevels, Zeros};
use crate::tensor::{QuantizedTensor, Tensor};

/// A tensor of a float layer's weights, and what the quantized layer has in its place.
struct Rounded<'a> {
    float: &'a Tensor,
    codes: Codes,
    /// Of a transposed convolution, whose codes have their output channels first.
    transposed: Option<&'a Conv2dGeometry>,
}

enum Codes {
    Int8(QuantizedTensor<i8>),
    Formatted(Box<QuantizedWeights>),
}

/// The weights of both layers, tensor by tensor; none where the layer has no codes, or not those of this float layer.
fn rounded<'a>(layer: &Layer, twin: &'a Layer) -> Result<Vec<Rounded<'a>>> {
    let float = match twin {
        Layer::Conv2d(conv) => conv.weight(),
        Layer::ConvTranspose2d(conv) => conv.weight(),
        Layer::Linear(linear) => linear.weight(),
        Layer::Embedding(table) => table.weight(),
        twin => return recurrent_weights(layer, twin),
    };
    let codes = match layer {
        Layer::QuantizedConv2d(conv) => Codes::Int8(conv.weight()?),
        Layer::QuantizedConvTranspose2d(conv) => Codes::Int8(conv.weight()?),
        Layer::QuantizedLinear(linear) => Codes::Int8(linear.weight()?),
        Layer::StaticConv2d(conv) => Codes::Int8(conv.weight()?),
        Layer::StaticLinear(linear) => Codes::Int8(linear.weight()?),
        Layer::QuantizedEmbedding(table) => Codes::Int8(table.weight().clone()),
        layer => match layer.stored_weights() {
            Some(weights) => Codes::Formatted(Box::new(weights.quantized()?)),
            None => return Ok(Vec::new()),
        },
    };
    let transposed = if let Layer::ConvTranspose2d(conv) = twin { Some(conv.geometry()) } else { None };
    let one = Rounded { float, codes, transposed };
    Ok(if one.fits() { vec![one] } else { Vec::new() })
}

/// Of all products of a recurrent layer, in their order.
fn recurrent_weights<'a>(layer: &Layer, twin: &'a Layer) -> Result<Vec<Rounded<'a>>> {
    let (Some(layer), Some(twin)) = (recurrent(layer), recurrent(twin)) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for pair in layer.products().into_iter().zip(twin.products()) {
        let (linear, Projection::Float(float)) = pair else { return Ok(Vec::new()) };
        let codes = match linear {
            Projection::Int8(linear) => Codes::Int8(linear.weight()?),
            Projection::WeightOnly(linear) => Codes::Formatted(Box::new(linear.weight().quantized()?)),
            Projection::Float(_) => return Ok(Vec::new()),
        };
        all.push(Rounded { float: float.weight(), codes, transposed: None });
    }
    Ok(if all.iter().all(Rounded::fits) { all } else { Vec::new() })
}

/// The float layer with the weights that the quantized one has, `None` where there are none to tell.
pub(super) fn with_rounded_weights(layer: &Layer, twin: &Layer) -> Result<Option<Layer>> {
    let mut weights = rounded(layer, twin)?.into_iter().map(|rounded| rounded.values()).collect::<Result<Vec<_>>>()?.into_iter();
    if let Some(twin) = recurrent(twin).filter(|_| weights.len() > 0) {
        let products = twin.products().into_iter().zip(weights).map(|(product, weight)| match product {
            Projection::Float(linear) => Ok(Projection::Float(Linear::new(weight, linear.bias().cloned())?)),
            other => Ok(other.clone()),
        });
        return Ok(Some(twin.with_products(products.collect::<Result<_>>()?)));
    }
    let Some(weight) = weights.next() else { return Ok(None) };
    Ok(match twin {
        Layer::Conv2d(conv) => Some(Conv2d::new(conv.geometry().clone(), weight, conv.bias().cloned())?.into()),
        Layer::ConvTranspose2d(conv) => {
            let made = ConvTranspose2d::new(conv.geometry().clone(), weight, conv.bias().cloned())?;
            Some(made.with_output_padding(conv.output_padding()).into())
        }
        Layer::Linear(linear) => Some(Linear::new(weight, linear.bias().cloned())?.into()),
        Layer::Embedding(_) => Some(Embedding::new(weight)?.into()),
        _ => None,
    })
}

/// The float weights in codes, or in units of their scales beside levels that are not evenly spaced.
pub(super) fn weight_histogram(layer: &Layer, twin: &Layer) -> Result<Option<Histogram>> {
    let all = rounded(layer, twin)?;
    let Some(first) = all.first() else { return Ok(None) };
    let mut histogram = first.codes.histogram();
    all.iter().for_each(|rounded| histogram.add(rounded.in_units()));
    Ok(Some(histogram))
}

impl Rounded<'_> {
    fn fits(&self) -> bool {
        let shape = match &self.codes {
            Codes::Int8(codes) => codes.shape(),
            Codes::Formatted(codes) => codes.shape(),
        };
        match self.transposed {
            Some(_) => shape.elements() == self.float.len(),
            None => shape == self.float.shape(),
        }
    }

    /// Where the code of the float weight of that index is.
    fn place(&self, index: usize) -> usize {
        let Some(geometry) = self.transposed else { return index };
        let [inputs, outputs] = [geometry.in_channels, geometry.out_channels].map(|channels| channels / geometry.groups);
        let taps: usize = geometry.kernel.iter().product();
        let (input, output, tap) = (index / taps / outputs, index / taps % outputs, index % taps);
        ((input / inputs * outputs + output) * inputs + input % inputs) * taps + tap
    }

    /// What the codes stand for, as the float layer has its weights.
    fn values(&self) -> Result<Tensor> {
        let values = match &self.codes {
            Codes::Int8(codes) => codes.dequantize(),
            Codes::Formatted(codes) => codes.dequantize(),
        };
        if self.transposed.is_none() {
            return Ok(values);
        }
        let ordered = (0..values.len()).map(|i| values.as_slice()[self.place(i)]).collect();
        Tensor::from_shape(self.float.shape().clone(), ordered)
    }

    /// The float weights that have codes, in the units of their histogram.
    fn in_units(&self) -> Box<dyn Iterator<Item = f32> + '_> {
        let float = self.float.as_slice();
        match &self.codes {
            Codes::Int8(codes) => {
                let (params, row) = (codes.params(), float.len() / codes.shape().dims()[0].max(1));
                Box::new(float.iter().enumerate().map(move |(i, w)| {
                    let (scale, zero) = params.at(if params.scales().len() == 1 { 0 } else { self.place(i) / row.max(1) });
                    w / scale + zero as f32
                }))
            }
            Codes::Formatted(codes) => {
                // In ascending order.
                let kept: Vec<usize> = codes.kept().into_iter().flat_map(SparseSplit::iter).map(|(index, _)| index).collect();
                let step = if codes.format().levels() == &Levels::MxInt8 { MX_STEP } else { 1.0 };
                Box::new((0..codes.groups()).flat_map(move |group| {
                    let scale = codes.scales().at(group) * step;
                    let (zero, offset) = match codes.zeros() {
                        Zeros::Points(points) => (points.get(group).unwrap_or(0) as f32, 0.0),
                        Zeros::Offsets(offsets) => (0.0, offsets.at(group)),
                        _ => (0.0, 0.0),
                    };
                    let own: Vec<usize> = codes.group(group).filter(|i| kept.binary_search(i).is_err()).collect();
                    own.into_iter().map(move |i| (float[i] - offset) / scale + zero)
                }))
            }
        }
    }
}

/// What a code of [`Levels::MxInt8`] is a multiple of, beside the scale.
const MX_STEP: f32 = 1.0 / 64.0;

impl Codes {
    /// An empty histogram around the codes.
    fn histogram(&self) -> Histogram {
        let codes = match self {
            Codes::Int8(codes) => return Histogram::new([codes.params().qmin() as f32, codes.params().qmax() as f32], 1.0),
            Codes::Formatted(codes) => codes,
        };
        let half = (1u32 << (codes.format().bits() - 1)) as f32;
        match codes.format().levels() {
            Levels::Int(_) => Histogram::new([-half, half - 1.0], 1.0),
            Levels::MxInt8 => Histogram::new([1.0 - half, half - 1.0], 1.0),
            Levels::Uint(_) | Levels::Offset(_) => Histogram::new([0.0, 2.0 * half - 1.0], 1.0),
            levels => {
                let own = matches!(levels, Levels::Shifted(_)) || matches!(codes.stored_levels(), StoredLevels::Own(_));
                let groups = if own { codes.groups() } else { codes.groups().min(1) };
                let mut levels: Vec<f32> = (0..groups).flat_map(|group| codes.table(group)).filter(|level| level.is_finite()).collect();
                levels.sort_unstable_by(f32::total_cmp);
                levels.dedup();
                let ends = [levels.first(), levels.last()].map(|end| end.copied().unwrap_or(0.0));
                // Of levels that each group has for itself there is no one list.
                Histogram::uneven(ends, if own { Vec::new() } else { levels })
            }
        }
    }
}

/// The input as a layer rounds it that does so when it runs; `None` for one that reads it as it is. Of a recurrent layer the sequence.
pub(super) fn rounded_input(layer: &Layer, x: &Tensor) -> Result<Option<Tensor>> {
    let row = x.dims().last().copied().unwrap_or(1).max(1);
    let image = x.len() / x.dims().first().copied().unwrap_or(1).max(1);
    let by = |rule: ActivationRule, part: usize| {
        let part = if layer.input_range() == Some(RangeOf::Tensor) { x.len() } else { part };
        by_range(x.as_slice(), [part, part], rule)
    };
    let values = match layer {
        Layer::QuantizedConv2d(conv) => by(conv.input_rule(), image),
        Layer::QuantizedConvTranspose2d(conv) => by(conv.input_rule(), image),
        Layer::QuantizedLinear(linear) => by(linear.input_rule(), row),
        Layer::WeightOnlyLinear(linear) => match run_of_bytes(linear.activations(), linear.weight()) {
            Some(run) => by_range(x.as_slice(), [row, run], LOW_BIT_RULE),
            None => return Ok(None),
        },
        Layer::WeightOnlyConv2d(conv) => match (run_of_bytes(conv.activations(), conv.weight()), x.dims()) {
            // Its rows are pixels.
            (Some(run), &[n, channels, h, w]) => {
                let pixels = by_range(&transposed(x.as_slice(), [n, channels, h * w]), [channels, run], LOW_BIT_RULE);
                transposed(&pixels, [n, h * w, channels])
            }
            _ => return Ok(None),
        },
        layer => {
            let products = recurrent(layer).map(|layer| layer.products()).unwrap_or_default();
            match products.into_iter().find(|product| !matches!(product, Projection::Float(_))) {
                Some(Projection::Int8(linear)) => by(linear.input_rule(), row),
                Some(Projection::WeightOnly(linear)) => match run_of_bytes(linear.activations(), linear.weight()) {
                    Some(run) => by_range(x.as_slice(), [row, run], LOW_BIT_RULE),
                    None => return Ok(None),
                },
                _ => return Ok(None),
            }
        }
    };
    Tensor::from_shape(x.shape().clone(), values).map(Some)
}

/// Values of a row that have one range in a product with quantized weights; `None` where floats are multiplied.
fn run_of_bytes(activations: Activations, weights: &StoredWeights) -> Option<usize> {
    let panels = weights.panels()?;
    match activations {
        Activations::Float => None,
        Activations::Int8 => Some(panels.k()),
        Activations::Int8Groups => Some(panels.group()),
    }
}

/// Each run of each row rounded to the codes of its own range.
fn by_range(x: &[f32], [row, run]: [usize; 2], rule: ActivationRule) -> Vec<f32> {
    let mut rounded = Vec::with_capacity(x.len());
    for values in x.chunks(row.max(1)).flat_map(|row| row.chunks(run.max(1))) {
        let finite = values.iter().copied().filter(|x| x.is_finite());
        let (min, max) = finite.fold((0.0f32, 0.0f32), |(min, max), x| (min.min(x), max.max(x)));
        let (scale, zero) = affine_qparams(min, max, rule.qmin, rule.qmax, rule.symmetric);
        rounded.extend(values.iter().map(|&x| dequantize(quantize(x, scale, zero, rule.qmin, rule.qmax), scale, zero)));
    }
    rounded
}

/// `n` matrices `[rows, columns]`, each transposed.
fn transposed(x: &[f32], matrices: [usize; 3]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    transpose(bytemuck::cast_slice(x), size_of::<f32>(), matrices, bytemuck::cast_slice_mut(&mut y));
    y
}
