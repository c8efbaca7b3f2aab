//! Any number of operands, element by element, with numpy's broadcasting.

use super::broadcast::{Spread, broadcast_shape, fold, zip_vectors};
use super::numbers::{Number, check_same, is_float, is_number, unexpected, with_number};
use super::{Facts, Operation, check_arity};
use crate::error::Result;
use crate::kernels::Workspace;
use crate::nn::layer::Order;
use crate::nn::view::{Inputs, Outputs, ViewMut};
use crate::tensor::{DType, Shape};

/// A function of the elements of one or more operands, all of one type, folded from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Variadic {
    /// The least of numbers; NaN when one is.
    Min,
    /// The greatest of numbers; NaN when one is.
    Max,
    /// The sum of floats.
    Sum,
    /// The sum of floats divided by their number.
    Mean,
}

impl Variadic {
    fn numbers<T: Number>(self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>, threads: usize) -> Result<()> {
        match self {
            Variadic::Min => folded(inputs, y, threads, T::least)?,
            Variadic::Max => folded(inputs, y, threads, T::greatest)?,
            Variadic::Sum => folded(inputs, y, threads, T::plus)?,
            Variadic::Mean => {
                folded(inputs, y, threads, T::plus)?;
                let count = T::from_f64(inputs.count() as f64);
                y.as_mut_slice::<T>().iter_mut().for_each(|y| *y = y.over(count));
            }
        }
        Ok(())
    }
}

fn folded<T: Number>(inputs: &Inputs<'_>, y: &mut ViewMut<'_>, threads: usize, f: impl Fn(T, T) -> T + Sync) -> Result<()> {
    let (a, dims, y) = (inputs.need(0)?, y.dims, y.as_mut_slice::<T>());
    if T::VECTORS && inputs.count() == 2 {
        let b = inputs.need(1)?;
        zip_vectors(&Spread::new(dims, [a.dims, b.dims])?, (a.as_slice(), b.as_slice()), y, threads, &f);
        return Ok(());
    }
    fold(&Spread::new(dims, [a.dims])?, y, a.as_slice(), &|_, a| a);
    for i in 1..inputs.count() {
        let b = inputs.need(i)?;
        fold(&Spread::new(dims, [b.dims])?, y, b.as_slice(), &f);
    }
    Ok(())
}

impl Operation for Variadic {
    fn name(&self) -> &'static str {
        match self {
            Variadic::Min => "Min",
            Variadic::Max => "Max",
            Variadic::Sum => "Sum",
            Variadic::Mean => "Mean",
        }
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_arity(inputs, 1, usize::MAX)?;
        let dtype = match self {
            Variadic::Min | Variadic::Max => check_same(self.name(), inputs, "a number", is_number)?,
            Variadic::Sum | Variadic::Mean => check_same(self.name(), inputs, "f32, f64, f16 or bf16", is_float)?,
        };
        Ok(vec![dtype])
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        let shapes: Vec<&Shape> = (0..facts.count()).map(|i| facts.shape(i)).collect::<Result<_>>()?;
        Ok(vec![broadcast_shape(shapes)?])
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (dtype, mut y) = (inputs.need(0)?.dtype, outputs.get(0));
        with_number!(dtype, T => self.numbers::<T>(inputs, &mut y, threads), _ => Err(unexpected(self.name(), dtype)))
    }
}
