//! Gated recurrent unit.

use super::{GateActivation, Passed, Projection, Recurrent, RecurrentOptions, Scratch, check, entries_of, initial, lengths, rows_of};
use crate::error::{Error, Result};
use crate::kernels::{Isa, Workspace};
use crate::nn::quantized::DynamicScheme;
use crate::nn::view::{Inputs, Outputs};
use crate::nn::{Layer, Linear, Precision};
use crate::quant::WeightFormat;
use crate::tensor::{Shape, Tensor};

/// ONNX GRU, for each step and direction, with gates in the order z, r, h:
///
/// ```text
/// z = f(x W_zᵀ + h R_zᵀ + b_z)       r = f(x W_rᵀ + h R_rᵀ + b_r)
/// n = g(x W_hᵀ + (r h) R_hᵀ + b_h)   or, with the reset after the product,   g(x W_hᵀ + w_h + r (h R_hᵀ + r_h))
/// h' = (1 - z) n + z h
/// ```
///
/// with `f` sigmoid and `g` tanh unless said otherwise. PyTorch's GRU has the reset after the product. Inputs: the
/// sequence, then optionally its lengths and the first `h`. Outputs: `Y` (every `h`) and `Y_h` (the last).
#[derive(Debug, Clone)]
pub struct Gru {
    options: RecurrentOptions,
    reset_after: bool,
    in_features: usize,
    directions: Vec<Weights>,
}

#[derive(Debug, Clone)]
struct Weights {
    input: Projection,
    // Of z and r; of the new state.
    gates: Projection,
    candidate: Projection,
    functions: [GateActivation; 2],
}

/// One direction of a layer: products with the input, with the state for `z` and `r`, and with the state for the new one.
#[cfg(feature = "onnx")]
pub(crate) type GruParts = (Projection, Projection, Projection);

#[cfg(feature = "onnx")]
impl Gru {
    /// ONNX's `linear_before_reset`, and the parts of each direction.
    pub(crate) fn parts(&self) -> (bool, Vec<GruParts>) {
        let parts = |weights: &Weights| (weights.input.clone(), weights.gates.clone(), weights.candidate.clone());
        (self.reset_after, self.directions.iter().map(parts).collect())
    }

    /// A layer of such parts, in float, in int8, or with weights alone quantized.
    ///
    /// # Errors
    /// Those of [`Gru::new`].
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_parts(options: RecurrentOptions, reset_after: bool, parts: Vec<GruParts>) -> Result<Self> {
        options.validate()?;
        if parts.len() != options.direction.count() {
            return Err(Error::length("list of directions", options.direction.count(), parts.len()));
        }
        let (hidden, in_features) = (options.hidden, parts[0].0.in_features());
        let all = hidden.checked_mul(3).ok_or_else(|| Error::parameter("hidden size", hidden, "is too large to address"))?;
        let direction = |(d, (input, gates, candidate)): (usize, GruParts)| {
            input.check(all, in_features)?;
            gates.check(2 * hidden, hidden)?;
            candidate.check(hidden, hidden)?;
            Ok(Weights { input, gates, candidate, functions: options.functions(d, [GateActivation::Sigmoid, GateActivation::Tanh])? })
        };
        let directions = parts.into_iter().enumerate().map(direction).collect::<Result<_>>()?;
        Ok(Gru { options, reset_after, in_features, directions })
    }
}

impl Gru {
    /// A layer with `weight` `[directions, 3 hidden, in]`, `recurrent` `[directions, 3 hidden, hidden]`, `bias`
    /// `[directions, 6 hidden]` (those of the input, then those of the state); `reset_after` is ONNX's
    /// `linear_before_reset`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes, [`Error::Parameter`] for a state of length 0 or a negative clip,
    /// [`Error::Length`] for the wrong number of functions.
    pub fn new(options: RecurrentOptions, reset_after: bool, weight: &Tensor, recurrent: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        options.validate()?;
        let (hidden, count) = (options.hidden, options.direction.count());
        let gates = hidden.checked_mul(6).ok_or_else(|| Error::parameter("hidden size", hidden, "is too large to address"))? / 2;
        let in_features = match *weight.dims() {
            [directions, rows, in_features] if directions == count && rows == gates => in_features,
            _ => return Err(Error::shape("weight", format!("[{count}, {gates}, in]"), weight.dims())),
        };
        check("recurrent weight", Some(recurrent), &[count, gates, hidden])?;
        check("bias", bias, &[count, 2 * gates])?;
        let direction = |d: usize| {
            let (mut own, state) = (entries_of(bias, d, 0..gates)?, entries_of(bias, d, gates..2 * gates)?);
            // The state's bias goes with the input's, but for the part that the reset gate multiplies.
            let merged = if reset_after { 2 * hidden } else { gates };
            own.iter_mut().zip(&state[..merged]).for_each(|(a, b)| *a += b);
            let kept = Tensor::new([hidden], state[2 * hidden..].to_vec())?;
            Ok(Weights {
                input: Projection::Float(Linear::new(rows_of(weight, d, 0..gates)?, bias.map(|_| Tensor::new([gates], own)).transpose()?)?),
                gates: Projection::Float(Linear::new(rows_of(recurrent, d, 0..2 * hidden)?, None)?),
                candidate: Projection::Float(Linear::new(
                    rows_of(recurrent, d, 2 * hidden..gates)?,
                    (bias.is_some() && reset_after).then_some(kept),
                )?),
                functions: options.functions(d, [GateActivation::Sigmoid, GateActivation::Tanh])?,
            })
        };
        let directions = (0..count).map(direction).collect::<Result<_>>()?;
        Ok(Gru { options, reset_after, in_features, directions })
    }

    /// The choices it was made with.
    pub fn options(&self) -> &RecurrentOptions {
        &self.options
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The same layer with weights in int8, one scale per output channel, and activations quantized at run time, row by
    /// row unless the scheme says otherwise.
    ///
    /// # Errors
    /// Those of [`quantized::Linear::from_float`](crate::nn::quantized::Linear::from_float).
    pub fn quantized(&self, scheme: &DynamicScheme, isa: Isa) -> Result<Self> {
        let twin = |weights: &Weights| {
            Ok(Weights {
                input: weights.input.quantized(scheme, isa)?,
                gates: weights.gates.quantized(scheme, isa)?,
                candidate: weights.candidate.quantized(scheme, isa)?,
                functions: weights.functions,
            })
        };
        Ok(Gru { directions: self.directions.iter().map(twin).collect::<Result<_>>()?, ..self.clone() })
    }

    /// What its products are computed in: int8 where one of them is.
    pub fn precision(&self) -> Precision {
        self.products().into_iter().map(Projection::precision).max().unwrap_or(Precision::F32)
    }

    /// The format of its weights, where they alone are quantized.
    pub fn weight_format(&self) -> Option<&WeightFormat> {
        self.products().into_iter().find_map(Projection::weight_format)
    }

    /// Name of the integer kernel that runs, if one does.
    pub fn kernel_name(&self) -> Option<&'static str> {
        self.directions[0].input.kernel_name()
    }

    /// Bytes of the weights and all that is stored to read them, and of biases.
    pub(crate) fn bytes(&self) -> [usize; 2] {
        let each = self.directions.iter().flat_map(|d| [d.input.bytes(), d.gates.bytes(), d.candidate.bytes()]);
        each.fold([0; 2], |[a, b], [c, d]| [a + c, b + d])
    }

    /// Bytes of its numbers as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.directions.iter().map(|d| d.input.stored_bytes() + d.gates.stored_bytes() + d.candidate.stored_bytes()).sum()
    }

    /// Multiply-accumulates for one row of one step, all directions.
    pub(crate) fn macs_per_row(&self) -> u64 {
        self.directions.iter().map(|d| (d.input.weights() + d.gates.weights() + d.candidate.weights()) as u64).sum()
    }

    /// What the candidate's product multiplies, for rows of the input and of the state: the state, times the reset gate where that comes
    /// before the product.
    fn reset(&self, direction: usize, inputs: &[f32], states: &[f32], threads: usize) -> Result<Vec<f32>> {
        let (weights, h) = (&self.directions[direction], self.options.hidden);
        let (rows, mut workspace) = (states.len() / h, Workspace::new());
        if self.reset_after || rows == 0 {
            return Ok(states.to_vec());
        }
        let mut gates = vec![0.0; rows * 3 * h];
        weights.input.run(inputs, rows, false, &mut gates, &mut workspace, threads)?;
        let mut zr: Vec<f32> = gates.chunks(3 * h).flat_map(|row| &row[..2 * h]).copied().collect();
        weights.gates.run(states, rows, true, &mut zr, &mut workspace, threads)?;
        let gate = |(row, state): (&[f32], &[f32])| -> Vec<f32> {
            row[h..].iter().zip(state).map(|(&r, state)| weights.functions[0].apply(self.options.clip(r)) * state).collect()
        };
        Ok(zr.chunks(2 * h).zip(states.chunks(h)).flat_map(gate).collect())
    }

    pub(crate) fn output_shapes(&self, x: &Shape) -> Result<Vec<Shape>> {
        Ok(self.options.output_shapes(x, self.in_features)?.to_vec())
    }

    pub(crate) fn run(
        &self,
        inputs: &Inputs<'_>,
        outputs: &mut Outputs<'_>,
        scratch: &mut Scratch,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<()> {
        let x = inputs.need(0)?;
        let options = &self.options;
        let sizes = options.sizes(x.dims, self.in_features)?;
        let (h, count, batch) = (options.hidden, options.direction.count(), sizes.batch);
        let Scratch { gates, state, cell: candidate, extra, lengths: steps_of } = scratch;
        lengths(inputs, 1, sizes, steps_of)?;
        let first_state = initial(inputs, 2, "initial h", count * batch * h)?;
        outputs.get(0).f32().fill(0.0);
        for (d, weights) in self.directions.iter().enumerate() {
            let [f, g] = weights.functions;
            gates.resize(sizes.steps * batch * 3 * h, 0.0);
            weights.input.run(x.f32(), sizes.steps * batch, false, gates, workspace, threads)?;
            state.clear();
            state.resize(batch * h, 0.0);
            for b in 0..batch {
                if let Some(first) = first_state {
                    state[b * h..][..h].copy_from_slice(&first[options.state_row(sizes, d, b) * h..][..h]);
                }
            }
            // z and r of all rows, then what the candidate's product is taken of, or its result.
            extra.resize(batch * 3 * h, 0.0);
            candidate.resize(batch * h, 0.0);
            let (zr, reset) = extra.split_at_mut(batch * 2 * h);
            for step in 0..sizes.steps {
                let t = if options.direction.is_reverse(d) { sizes.steps - 1 - step } else { step };
                let row = |b: usize| &gates[options.input_row(sizes, t, b) * 3 * h..][..3 * h];
                for b in 0..batch {
                    zr[b * 2 * h..][..2 * h].copy_from_slice(&row(b)[..2 * h]);
                }
                weights.gates.run(state, batch, true, zr, workspace, threads)?;
                zr.iter_mut().for_each(|x| *x = f.apply(options.clip(*x)));
                if self.reset_after {
                    weights.candidate.run(state, batch, false, candidate, workspace, threads)?;
                } else {
                    for b in 0..batch {
                        for j in 0..h {
                            reset[b * h + j] = zr[b * 2 * h + h + j] * state[b * h + j];
                        }
                    }
                    weights.candidate.run(reset, batch, false, candidate, workspace, threads)?;
                }
                for b in (0..batch).filter(|&b| t < steps_of[b]) {
                    for j in 0..h {
                        let (z, r) = (zr[b * 2 * h + j], zr[b * 2 * h + h + j]);
                        let product = candidate[b * h + j] * if self.reset_after { r } else { 1.0 };
                        let new = g.apply(options.clip(row(b)[2 * h + j] + product));
                        let state = &mut state[b * h + j];
                        *state = (1.0 - z) * new + z * *state;
                    }
                    outputs.get(0).f32()[options.output_row(sizes, d, t, b) * h..][..h].copy_from_slice(&state[b * h..][..h]);
                }
            }
            let mut y = outputs.get(1);
            for b in 0..batch {
                y.f32()[options.state_row(sizes, d, b) * h..][..h].copy_from_slice(&state[b * h..][..h]);
            }
        }
        Ok(())
    }
}

impl Recurrent for Gru {
    fn options(&self) -> &RecurrentOptions {
        self.options()
    }

    fn in_features(&self) -> usize {
        self.in_features()
    }

    fn products(&self) -> Vec<&Projection> {
        self.directions.iter().flat_map(|weights| [&weights.input, &weights.gates, &weights.candidate]).collect()
    }

    fn with_products(&self, products: Vec<Projection>) -> Layer {
        let mut twin = self.clone();
        let places = twin.directions.iter_mut().flat_map(|weights| [&mut weights.input, &mut weights.gates, &mut weights.candidate]);
        places.zip(products).for_each(|(place, product)| *place = product);
        twin.into()
    }

    fn multiplied(&self, passed: &Passed<'_>, sequence: usize, threads: usize) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for direction in 0..self.directions.len() {
            let [inputs, beside, states] = passed.rows(direction, sequence);
            let reset = self.reset(direction, &beside, &states, threads)?;
            all.extend([inputs, states, reset]);
        }
        Ok(all)
    }
}
