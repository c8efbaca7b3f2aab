//! Functions of one code, by table.

use super::GRAIN;
use crate::error::{Error, Result};
use crate::kernels::isa::{Isa, Visitor};
use crate::kernels::simd::Simd;
use crate::kernels::threads::{parts, split_rows};

/// `y[i] = table[x[i]]`, on at most so many threads.
///
/// # Errors
/// [`Error::Length`] when `y` is not as long as `x`.
pub fn lookup(table: &[u8; 256], x: &[u8], y: &mut [u8], threads: usize) -> Result<()> {
    lookup_for(Isa::best(), table, x, y, threads)
}

/// [`lookup`] on the instruction set `isa`.
///
/// # Errors
/// As there, and [`Error::Isa`] when this processor lacks it.
pub fn lookup_for(isa: Isa, table: &[u8; 256], x: &[u8], y: &mut [u8], threads: usize) -> Result<()> {
    if x.len() != y.len() {
        return Err(Error::length("looked up codes", x.len(), y.len()));
    }
    let isa = isa.checked()?;
    split_rows(y, 1, parts(threads, x.len(), GRAIN), &|start, y: &mut [u8]| {
        let x = &x[start..start + y.len()];
        isa.visit(Lookup { table, x, y });
    });
    Ok(())
}

struct Lookup<'a> {
    table: &'a [u8; 256],
    x: &'a [u8],
    y: &'a mut [u8],
}

impl Visitor for Lookup<'_> {
    type Out = ();
    fn visit<S: Simd>(self, simd: S) {
        simd.lookup(self.table, self.x, self.y);
    }
}
