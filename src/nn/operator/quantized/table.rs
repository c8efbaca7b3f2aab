//! Functions of one code, by table.

use std::sync::Arc;

use super::check_codes;
use crate::error::Result;
use crate::kernels::{Workspace, lookup};
use crate::nn::layer::{Order, Precision};
use crate::nn::operator::{Facts, Operation};
use crate::nn::view::{Inputs, Outputs};
use crate::num::U8Grid;
use crate::tensor::{DType, Shape};

/// Any function of each u8 code: `y[i] = table[x[i]]`.
///
/// ```
/// use lowprec::{nn::operator::CodeTable, num::U8Grid};
/// let (x, y) = (U8Grid::new(0.05, 128)?, U8Grid::new(1.0 / 256.0, 0)?);
/// let sigmoid = CodeTable::of("Sigmoid", x, y, |x| 1.0 / (1.0 + (-x).exp()));
/// assert_eq!(sigmoid.table()[128], 128);
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeTable {
    name: &'static str,
    table: Arc<[u8; 256]>,
}

impl CodeTable {
    /// The function of this table, called `name`, as in `Sigmoid`.
    pub fn new(name: &'static str, table: [u8; 256]) -> Self {
        CodeTable { name, table: Arc::new(table) }
    }

    /// `f` of each value on the grid `from`, as the nearest code of the grid `to`. What lies beyond that grid becomes its first or
    /// last code; NaN becomes the zero point.
    pub fn of(name: &'static str, from: U8Grid, to: U8Grid, f: impl Fn(f32) -> f32) -> Self {
        CodeTable::new(name, std::array::from_fn(|code| to.quantize(f(from.dequantize(code as u8)))))
    }

    /// The values on the grid `from` as the nearest codes of the grid `to`; called `Requantize`.
    pub fn requantize(from: U8Grid, to: U8Grid) -> Self {
        CodeTable::of("Requantize", from, to, |x| x)
    }

    /// The result for each code.
    pub fn table(&self) -> &[u8; 256] {
        &self.table
    }
}

impl Operation for CodeTable {
    fn name(&self) -> &'static str {
        self.name
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_codes(self.name, inputs, 1)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        Ok(vec![facts.shape(0)?.clone()])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn precision(&self) -> Precision {
        Precision::Int8
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        lookup(&self.table, inputs.need(0)?.bytes, outputs.get(0).bytes, threads)
    }
}
