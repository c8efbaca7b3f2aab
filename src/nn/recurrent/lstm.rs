//! Long short-term memory.

use super::{GateActivation, Passed, Projection, Recurrent, RecurrentOptions, Scratch, check, entries_of, initial, lengths, rows_of};
use crate::error::{Error, Result};
use crate::kernels::{Isa, Workspace};
use crate::nn::quantized::DynamicScheme;
use crate::nn::view::{Inputs, Outputs};
use crate::nn::{Layer, Linear, Precision};
use crate::quant::WeightFormat;
use crate::tensor::{Shape, Tensor};

/// ONNX LSTM, for each step and direction, with gates in the order i, o, f, c:
///
/// ```text
/// i = f(x Wᵢᵀ + h Rᵢᵀ + pᵢ c + bᵢ)       f' = f(x W_fᵀ + h R_fᵀ + p_f c + b_f), or 1 - i when coupled
/// c' = f' c + i g(x W_cᵀ + h R_cᵀ + b_c)
/// o = f(x Wₒᵀ + h Rₒᵀ + pₒ c' + bₒ)      h' = o h(c')
/// ```
///
/// with `f` sigmoid, `g` and `h` tanh unless said otherwise. Inputs: the sequence, then optionally its lengths, the first
/// `h`, the first `c`. Outputs: `Y` (every `h`), `Y_h`, `Y_c` (the last ones).
#[derive(Debug, Clone)]
pub struct Lstm {
    options: RecurrentOptions,
    coupled: bool,
    in_features: usize,
    directions: Vec<Weights>,
}

#[derive(Debug, Clone)]
struct Weights {
    input: Projection,
    hidden: Projection,
    // i, o, f.
    peepholes: Option<Vec<f32>>,
    functions: [GateActivation; 3],
}

/// One direction of a layer: products with the input and with the state, and peepholes.
#[cfg(feature = "onnx")]
pub(crate) type LstmParts = (Projection, Projection, Option<Vec<f32>>);

#[cfg(feature = "onnx")]
impl Lstm {
    /// Whether the forget gate is `1 - i`, and the parts of each direction.
    pub(crate) fn parts(&self) -> (bool, Vec<LstmParts>) {
        let parts = |weights: &Weights| (weights.input.clone(), weights.hidden.clone(), weights.peepholes.clone());
        (self.coupled, self.directions.iter().map(parts).collect())
    }

    /// A layer of such parts, in float, in int8, or with weights alone quantized.
    ///
    /// # Errors
    /// Those of [`Lstm::new`].
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_parts(options: RecurrentOptions, coupled: bool, parts: Vec<LstmParts>) -> Result<Self> {
        options.validate()?;
        if parts.len() != options.direction.count() {
            return Err(Error::length("list of directions", options.direction.count(), parts.len()));
        }
        let (hidden, in_features) = (options.hidden, parts[0].0.in_features());
        let gates = hidden.checked_mul(4).ok_or_else(|| Error::parameter("hidden size", hidden, "is too large to address"))?;
        let direction = |(d, (input, state, peepholes)): (usize, LstmParts)| {
            input.check(gates, in_features)?;
            state.check(gates, hidden)?;
            if let Some(got) = peepholes.as_ref().map(Vec::len).filter(|&got| got != 3 * hidden) {
                return Err(Error::length("peepholes", 3 * hidden, got));
            }
            let functions = options.functions(d, [GateActivation::Sigmoid, GateActivation::Tanh, GateActivation::Tanh])?;
            Ok(Weights { input, hidden: state, peepholes, functions })
        };
        let directions = parts.into_iter().enumerate().map(direction).collect::<Result<_>>()?;
        Ok(Lstm { options, coupled, in_features, directions })
    }
}

impl Lstm {
    /// A layer with `weight` `[directions, 4 hidden, in]`, `recurrent` `[directions, 4 hidden, hidden]`, `bias`
    /// `[directions, 8 hidden]` (those of the input, then those of the state), `peepholes` `[directions, 3 hidden]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes, [`Error::Parameter`] for a state of length 0 or a negative clip,
    /// [`Error::Length`] for the wrong number of functions.
    pub fn new(
        options: RecurrentOptions,
        weight: &Tensor,
        recurrent: &Tensor,
        bias: Option<&Tensor>,
        peepholes: Option<&Tensor>,
    ) -> Result<Self> {
        options.validate()?;
        let (hidden, count) = (options.hidden, options.direction.count());
        let gates = hidden.checked_mul(8).ok_or_else(|| Error::parameter("hidden size", hidden, "is too large to address"))? / 2;
        let in_features = match *weight.dims() {
            [directions, rows, in_features] if directions == count && rows == gates => in_features,
            _ => return Err(Error::shape("weight", format!("[{count}, {gates}, in]"), weight.dims())),
        };
        check("recurrent weight", Some(recurrent), &[count, gates, hidden])?;
        check("bias", bias, &[count, 2 * gates])?;
        check("peepholes", peepholes, &[count, 3 * hidden])?;
        let usual = [GateActivation::Sigmoid, GateActivation::Tanh, GateActivation::Tanh];
        let direction = |d: usize| {
            let (own, state) = (entries_of(bias, d, 0..gates)?, entries_of(bias, d, gates..2 * gates)?);
            let sum: Vec<f32> = own.iter().zip(&state).map(|(a, b)| a + b).collect();
            let bias = bias.map(|_| Tensor::new([gates], sum)).transpose()?;
            Ok(Weights {
                input: Projection::Float(Linear::new(rows_of(weight, d, 0..gates)?, bias)?),
                hidden: Projection::Float(Linear::new(rows_of(recurrent, d, 0..gates)?, None)?),
                peepholes: peepholes.map(|p| entries_of(Some(p), d, 0..3 * hidden)).transpose()?,
                functions: options.functions(d, usual)?,
            })
        };
        let directions = (0..count).map(direction).collect::<Result<_>>()?;
        Ok(Lstm { options, coupled: false, in_features, directions })
    }

    /// With the forget gate `1 - i`.
    #[must_use]
    pub fn with_coupled_gates(self, coupled: bool) -> Self {
        Lstm { coupled, ..self }
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
            let (input, hidden) = (weights.input.quantized(scheme, isa)?, weights.hidden.quantized(scheme, isa)?);
            Ok(Weights { input, hidden, ..weights.clone() })
        };
        Ok(Lstm { directions: self.directions.iter().map(twin).collect::<Result<_>>()?, ..self.clone() })
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

    /// Bytes of the weights and all that is stored to read them, and of biases and peepholes.
    pub(crate) fn bytes(&self) -> [usize; 2] {
        let each = self.directions.iter().map(|d| {
            let ([w, b], [r, rb]) = (d.input.bytes(), d.hidden.bytes());
            [w + r, b + rb + 4 * d.peepholes.as_ref().map_or(0, Vec::len)]
        });
        each.fold([0; 2], |[a, b], [c, d]| [a + c, b + d])
    }

    /// Bytes of its numbers as files have them.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.directions
            .iter()
            .map(|d| d.input.stored_bytes() + d.hidden.stored_bytes() + 4 * d.peepholes.as_ref().map_or(0, Vec::len))
            .sum()
    }

    /// Multiply-accumulates for one row of one step, all directions.
    pub(crate) fn macs_per_row(&self) -> u64 {
        self.directions.iter().map(|d| (d.input.weights() + d.hidden.weights()) as u64).sum()
    }

    pub(crate) fn output_shapes(&self, x: &Shape) -> Result<Vec<Shape>> {
        let [all, last] = self.options.output_shapes(x, self.in_features)?;
        Ok(vec![all, last.clone(), last])
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
        let Scratch { gates, state, cell, extra, lengths: steps_of } = scratch;
        lengths(inputs, 1, sizes, steps_of)?;
        let first_state = initial(inputs, 2, "initial h", count * batch * h)?;
        let first_cell = initial(inputs, 3, "initial c", count * batch * h)?;
        outputs.get(0).f32().fill(0.0);
        for (d, weights) in self.directions.iter().enumerate() {
            gates.resize(sizes.steps * batch * 4 * h, 0.0);
            weights.input.run(x.f32(), sizes.steps * batch, false, gates, workspace, threads)?;
            for (values, first) in [(&mut *state, first_state), (&mut *cell, first_cell)] {
                values.clear();
                values.resize(batch * h, 0.0);
                if let Some(first) = first {
                    for b in 0..batch {
                        values[b * h..][..h].copy_from_slice(&first[options.state_row(sizes, d, b) * h..][..h]);
                    }
                }
            }
            extra.resize(batch * 4 * h, 0.0);
            for step in 0..sizes.steps {
                let t = if options.direction.is_reverse(d) { sizes.steps - 1 - step } else { step };
                for b in 0..batch {
                    extra[b * 4 * h..][..4 * h].copy_from_slice(&gates[options.input_row(sizes, t, b) * 4 * h..][..4 * h]);
                }
                weights.hidden.run(state, batch, true, extra, workspace, threads)?;
                for b in (0..batch).filter(|&b| t < steps_of[b]) {
                    let (state, cell) = (&mut state[b * h..][..h], &mut cell[b * h..][..h]);
                    self.cell(weights, &extra[b * 4 * h..][..4 * h], state, cell);
                    outputs.get(0).f32()[options.output_row(sizes, d, t, b) * h..][..h].copy_from_slice(state);
                }
            }
            for (output, values) in [(1, &*state), (2, &*cell)] {
                let mut y = outputs.get(output);
                for b in 0..batch {
                    y.f32()[options.state_row(sizes, d, b) * h..][..h].copy_from_slice(&values[b * h..][..h]);
                }
            }
        }
        Ok(())
    }

    /// One step of one sequence.
    fn cell(&self, weights: &Weights, gates: &[f32], state: &mut [f32], cell: &mut [f32]) {
        let h = state.len();
        let [f, g, out] = weights.functions;
        let peephole = |gate: usize, j: usize| weights.peepholes.as_ref().map_or(0.0, |p| p[gate * h + j]);
        for (j, (state, cell)) in state.iter_mut().zip(cell).enumerate() {
            let gate = |gate: usize, c: f32, p: f32| self.options.clip(gates[gate * h + j] + p * c);
            let input = f.apply(gate(0, *cell, peephole(0, j)));
            let forget = if self.coupled { 1.0 - input } else { f.apply(gate(2, *cell, peephole(2, j))) };
            *cell = forget * *cell + input * g.apply(gate(3, 0.0, 0.0));
            *state = f.apply(gate(1, *cell, peephole(1, j))) * out.apply(self.options.clip(*cell));
        }
    }
}

impl Recurrent for Lstm {
    fn options(&self) -> &RecurrentOptions {
        self.options()
    }

    fn in_features(&self) -> usize {
        self.in_features()
    }

    fn products(&self) -> Vec<&Projection> {
        self.directions.iter().flat_map(|weights| [&weights.input, &weights.hidden]).collect()
    }

    fn with_products(&self, products: Vec<Projection>) -> Layer {
        let mut twin = self.clone();
        let places = twin.directions.iter_mut().flat_map(|weights| [&mut weights.input, &mut weights.hidden]);
        places.zip(products).for_each(|(place, product)| *place = product);
        twin.into()
    }

    fn multiplied(&self, passed: &Passed<'_>, sequence: usize, _threads: usize) -> Result<Vec<Vec<f32>>> {
        let of = |direction| {
            let [inputs, _, states] = passed.rows(direction, sequence);
            [inputs, states]
        };
        Ok((0..self.directions.len()).flat_map(of).collect())
    }
}
