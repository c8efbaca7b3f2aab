//! Two operands in codes, with numpy's broadcasting.

use super::check_codes;
use crate::error::Result;
use crate::kernels::{CODES_GRAIN, Isa, Pairwise, Workspace};
use crate::nn::layer::{Order, Precision};
use crate::nn::operator::broadcast::{Rows, Spread, broadcast_shape};
use crate::nn::operator::{Facts, Operation};
use crate::nn::view::{Inputs, Outputs};
use crate::num::U8Grid;
use crate::tensor::{DType, Shape};

/// The sum of two values in u8 codes: `clamp(round(f32(a - za) * (sa / s) + f32(b - zb) * (sb / s)) + z, lo, hi)`, two f32
/// products and one f32 sum, each rounded. Shapes broadcast.
///
/// ```
/// use lowprec::{nn::operator::QuantizedAdd, num::U8Grid};
/// let (a, b, sum) = (U8Grid::new(0.02, 128)?, U8Grid::new(0.03, 0)?, U8Grid::new(0.04, 0)?);
/// // A ReLU fused: no code is below that of zero.
/// let add = QuantizedAdd::new(a, b, sum)?.with_range(sum.zero_point(), 255)?;
/// # let _ = add;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizedAdd {
    pairs: Pairwise,
    grids: [U8Grid; 3],
}

/// The product of two values in u8 codes: `clamp(round(f32((a - za) * (b - zb)) * (sa * sb / s)) + z, lo, hi)`, the multiplier by
/// f32 operations from left to right. Shapes broadcast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizedMul {
    pairs: Pairwise,
    grids: [U8Grid; 3],
}

impl QuantizedAdd {
    /// Of operands on the grids `a` and `b`, on the grid `out`.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) when a scale is more than 2^64 times that of the output.
    pub fn new(a: U8Grid, b: U8Grid, out: U8Grid) -> Result<Self> {
        Ok(QuantizedAdd { pairs: Pairwise::sum(a, b, out)?, grids: [a, b, out] })
    }
}

impl QuantizedMul {
    /// Of operands on the grids `a` and `b`, on the grid `out`.
    ///
    /// # Errors
    /// [`Error::Parameter`](crate::Error::Parameter) when the product of the scales is more than 2^64 times that of the output.
    pub fn new(a: U8Grid, b: U8Grid, out: U8Grid) -> Result<Self> {
        Ok(QuantizedMul { pairs: Pairwise::product(a, b, out)?, grids: [a, b, out] })
    }
}

macro_rules! pairwise {
    ($type:ident, $name:literal) => {
        impl $type {
            /// With codes held within `lo..=hi`: a ReLU starts at the output's zero point.
            ///
            /// # Errors
            /// [`Error::Parameter`](crate::Error::Parameter) when `lo` is above `hi`.
            pub fn with_range(self, lo: u8, hi: u8) -> Result<Self> {
                Ok($type { pairs: self.pairs.with_range(lo, hi)?, ..self })
            }

            /// To run on another instruction set than the best of this processor. The results are the same.
            ///
            /// # Errors
            /// [`Error::Isa`](crate::Error::Isa) when this processor lacks it.
            pub fn with_isa(self, isa: Isa) -> Result<Self> {
                Ok($type { pairs: self.pairs.with_isa(isa)?, ..self })
            }

            /// What the codes of both inputs and of the output stand for.
            pub fn grids(&self) -> [U8Grid; 3] {
                self.grids
            }

            /// Smallest and largest code.
            pub fn range(&self) -> (u8, u8) {
                self.pairs.range()
            }
        }

        impl Operation for $type {
            fn name(&self) -> &'static str {
                $name
            }

            fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
                check_codes($name, inputs, 2)
            }

            fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
                Ok(vec![broadcast_shape([facts.shape(0)?, facts.shape(1)?])?])
            }

            fn order(&self) -> Order {
                Order::Any
            }

            fn precision(&self) -> Precision {
                Precision::Int8
            }

            fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
                run(&self.pairs, inputs, outputs, threads)
            }
        }
    };
}
pairwise!(QuantizedAdd, "Add");
pairwise!(QuantizedMul, "Mul");

fn run(pairs: &Pairwise, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, threads: usize) -> Result<()> {
    let (a, b, y) = (inputs.need(0)?, inputs.need(1)?, outputs.get(0));
    let spread = Spread::new(y.dims, [a.dims, b.dims])?;
    let (operands, steps) = ([a.bytes, b.bytes], spread.steps());
    spread.split(y.bytes, (threads, CODES_GRAIN), &|mut rows: Rows<'_, 2>, y: &mut [u8]| {
        let row = rows.length;
        pairs.rows(operands, y, row, steps, &mut || rows.step());
    });
    Ok(())
}
