//! What the tests of integer kernels share: seeded bytes, parameters of the output stages, and the comparison with the reference.
#![allow(dead_code)]

use lowprec::kernels::{Activation, ActivationCode, Dequantize, Matrix, Per, Requantize, Residual};

/// Numbers that depend on nothing but the seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// A byte by kind: anything, or only extremes.
    pub fn bytes(&mut self, len: usize, kind: u8) -> Vec<u8> {
        (0..len)
            .map(|_| match kind {
                0 => 255,
                1 => [0, 255, 127, 128][self.below(4)],
                _ => self.next() as u8,
            })
            .collect()
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }

    pub fn scales(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.below(1000) + 1) as f32 * 1.7e-5).collect()
    }
}

/// Bytes as codes of either type.
pub trait Code: ActivationCode {
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}
impl Code for u8 {
    fn from_bytes(bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}
impl Code for i8 {
    fn from_bytes(bytes: &[u8]) -> Vec<i8> {
        bytes.iter().map(|&b| b as i8).collect()
    }
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// What the stages are given: `rows` are those of a product or the images of a convolution, `m` those of the output.
pub struct Parameters<T> {
    pub zero_points: Vec<i32>,
    lhs_scales: Vec<f32>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    integer_bias: Vec<i32>,
    activation: Activation,
    per_row: bool,
    with_bias: bool,
    /// Whether something is added: what is in the output, or a residual.
    adds: bool,
    residual: Vec<T>,
    pub before: Vec<f32>,
    m: usize,
    /// Elements between the rows of the residual.
    gap: usize,
    /// Whether zero points of codes that are written or added are the smallest code, as behind a ReLU.
    lowest: bool,
}

impl<T: Code> Parameters<T> {
    pub fn new(random: &mut Random, rows: usize, n: usize, m: usize) -> Self {
        let (len, gap) = (m * n, 3 * random.below(2));
        let zero_points = (0..rows.max(1)).map(|_| T::QMIN + random.below(256) as i32).collect();
        let one_scale = random.below(2) == 0;
        // Most are small enough for codes to differ; some send every sum out of range, and beyond i32.
        let large = if random.below(8) == 0 { 1e12 } else { 1.0 };
        Parameters {
            zero_points,
            lhs_scales: random.scales(rows.max(1)),
            scales: random.scales(if one_scale { 1 } else { n }).into_iter().map(|scale| scale * large).collect(),
            bias: random.floats(n),
            integer_bias: (0..n).map(|_| random.below(20001) as i32 - 10000).collect(),
            activation: [Activation::None, Activation::Relu, Activation::Clamp { lo: -0.3, hi: 0.7 }][random.below(3)],
            per_row: random.below(2) == 0,
            with_bias: random.below(2) == 0,
            adds: random.below(2) == 0,
            residual: T::from_bytes(&random.bytes(m * (n + gap), 2)),
            before: random.floats(len),
            m,
            gap,
            lowest: random.below(2) == 0,
        }
    }

    pub fn zero_point(&self, rows: usize) -> Per<'_, i32> {
        if self.per_row { Per::Row(&self.zero_points[..rows]) } else { Per::Tensor(self.zero_points[0]) }
    }

    pub fn dequantize(&self, rows: usize) -> Dequantize<'_> {
        let lhs_scale = if self.per_row { Per::Row(&self.lhs_scales[..rows]) } else { Per::Tensor(self.lhs_scales[0]) };
        Dequantize::new(lhs_scale, &self.scales)
            .with_bias(self.with_bias.then_some(&self.bias[..]))
            .with_activation(self.activation)
            .with_accumulate(self.adds)
    }

    pub fn requantize<'a, U: Code>(&'a self, residual: &'a [U], n: usize) -> Requantize<'a, U> {
        let middle = (U::QMIN + U::QMAX + 1) / 2;
        let (zero_point, of_residual) = if self.lowest { (U::QMIN, U::QMIN) } else { (middle + 3, middle - 4) };
        let relu = self.activation == Activation::Relu;
        let codes = Matrix::new(residual, self.m, n).and_then(|codes| codes.with_stride(n + self.gap)).expect("long enough");
        let residual = self.adds.then_some(Residual { codes, zero_point: of_residual, multiplier: 0.37 });
        let bias = self.with_bias.then_some(&self.integer_bias[..]);
        let stage = Requantize::new(&self.scales).with_bias(bias).with_zero_point(zero_point).with_residual(residual);
        if relu { stage.with_range(zero_point, U::QMAX - 5) } else { stage }
    }

    pub fn residual<U: Code>(&self) -> Vec<U> {
        U::from_bytes(&self.residual.iter().map(|code| code.to_i32() as u8).collect::<Vec<_>>())
    }
}

/// Runs every stage of one product or convolution and compares it with the reference. A macro, since a stage's element
/// type differs from stage to stage. `$sums` may be wider than i32 if no sum is.
#[macro_export]
macro_rules! compare_stages {
    ($sums:expr, $n:expr, $rows:expr, $rows_per_parameter:expr, $parameters:expr, $context:expr, |$stage:ident, $dst:ident| $run:expr) => {{
        let (sums, n, p) = (&$sums[..], $n, &$parameters);
        let context = $context;
        let mut got = vec![-77i32; sums.len()];
        {
            let ($stage, $dst) = (&Accumulate, &mut got[..]);
            $run
        }
        assert!(got.iter().zip(sums).all(|(&got, &sum)| i64::from(got) == i64::from(sum)), "sums {got:?}, not {sums:?}, {context}");
        compare_narrow_stages!(sums, n, $rows, $rows_per_parameter, p, context, |$stage, $dst| $run);
    }};
}

/// [`compare_stages`] but for the sums themselves, which may be beyond i32.
#[macro_export]
macro_rules! compare_narrow_stages {
    ($sums:expr, $n:expr, $rows:expr, $rows_per_parameter:expr, $parameters:expr, $context:expr, |$stage:ident, $dst:ident| $run:expr) => {{
        let (sums, n, p) = (&$sums[..], $n, &$parameters);
        let context = $context;
        let stage = p.dequantize($rows);
        let (mut got, mut expected) = (p.before.clone(), p.before.clone());
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        reference::dequantize(sums, n, $rows_per_parameter, &stage, &mut expected);
        assert_eq!(bits(&got), bits(&expected), "dequantize, {context}");
        let residual = p.residual::<u8>();
        let stage = p.requantize::<u8>(&residual, n);
        let mut got = vec![77u8; sums.len()];
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        assert_eq!(got, reference::requantize(sums, n, &stage), "requantize u8, {context}");
        let residual = p.residual::<i8>();
        let stage = p.requantize::<i8>(&residual, n);
        let mut got = vec![77i8; sums.len()];
        {
            let ($stage, $dst) = (&stage, &mut got[..]);
            $run
        }
        assert_eq!(got, reference::requantize(sums, n, &stage), "requantize i8, {context}");
    }};
}
