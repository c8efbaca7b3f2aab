//! Values in 8-bit codes, which QuantizeLinear writes and DequantizeLinear reads.
//!
//! Where scale and zero point are constant, codes are no values of the model at first, but a grid to which a float value is rounded
//! (an annotation of its edge). The model in floats with its annotations then becomes the one in integers. What needs the codes
//! themselves gets them from a node QuantizeLinear.

use super::call::{Argument, Call, Source};
use super::codes::{Codes, Grid, WeightCodes};
use super::{Importer, Known, Shell};
use crate::convert::{CodeRange, FileName, MOVERS};
use crate::error::Result;
use crate::nn::Edge;
use crate::nn::operator::{DequantizeLinear, Identity, QuantizeLinear};
use crate::tensor::{DType, Value};

/// Element types as files number them.
const F32: i64 = 1;
const U8: i64 = 2;
const I8: i64 = 3;

/// The grid to which a QuantizeLinear rounds floats, or on which codes that a DequantizeLinear reads are; `None` when it is none that
/// an annotation tells.
pub(super) fn grid(call: &Call<'_>) -> Option<Grid> {
    let asked = call.attributes.peek_int("output_dtype").unwrap_or(0);
    let dtype = match (call.operator, asked) {
        ("DequantizeLinear", 0 | F32) => call.dtype(0)?,
        ("QuantizeLinear", 0) => call.dtype(2).unwrap_or(DType::U8),
        ("QuantizeLinear", U8) => DType::U8,
        ("QuantizeLinear", I8) => DType::I8,
        _ => return None,
    };
    let floats = call.operator == "DequantizeLinear" || call.dtype(0) == Some(DType::F32);
    (floats && call.value(0).is_none() && is_flat(call)).then(|| Grid::of(&call.arguments, [1, 2], dtype))?
}

/// The codes that a node's output, constant weights in floats, is made of.
pub(super) fn weights(call: &Call<'_>) -> Option<WeightCodes> {
    match call.operator {
        "DequantizeLinear" if is_flat(call) && matches!(call.attributes.peek_int("output_dtype"), None | Some(0 | F32)) => {
            let axis = call.attributes.peek_int("axis").unwrap_or(1);
            WeightCodes::new(call.value(0)?, call.value(1)?, call.value(2), axis)
        }
        // A matrix has only one other way to lie.
        "Transpose" if call.attributes.peek_ints("perm").is_none_or(|perm| perm == [1, 0]) => call.weights(0)?.transposed(),
        _ => None,
    }
}

/// Whether there are no blocks with scales of their own.
fn is_flat(call: &Call<'_>) -> bool {
    matches!(call.attributes.peek_int("block_size"), None | Some(0))
}

impl Importer<'_> {
    /// QuantizeLinear as an annotation: whether it can be one.
    pub(super) fn annotate_codes(&mut self, index: usize, call: &Call<'_>, grid: Grid) -> Result<bool> {
        let (&[Source::Name(x), ..], [y]) = (call.sources.as_slice(), self.shells[index].outputs.as_slice()) else { return Ok(false) };
        let edge = self.edge(x)?;
        let of = self.rounded(edge, x, grid)?;
        self.set_codes(y, call.rank(0), Codes { of, grid, writer: index });
        Ok(true)
    }

    /// DequantizeLinear of codes that are an annotation: the annotated value, if the grid is the same.
    pub(super) fn read_codes(&mut self, index: usize, call: &Call<'_>, grid: Grid) -> bool {
        let Shell { name: node, outputs, .. } = &self.shells[index];
        let (&[Source::Name(x), ..], [y]) = (call.sources.as_slice(), outputs.as_slice()) else { return false };
        let Some(Codes { of, .. }) = self.values[x].codes.filter(|codes| codes.grid == grid) else { return false };
        let name = FileName { value: y.clone(), node: node.clone() };
        self.annotations.names.entry(of.index).or_default()[1].get_or_insert(name);
        self.aliases.insert(y.clone());
        self.values.insert(y.clone(), Known { edge: Some(of), dtype: DType::F32, rank: call.rank(0), ..Known::default() });
        true
    }

    /// What is known of the grid of floats that a DequantizeLinear made of codes that the model holds.
    pub(super) fn annotate_floats(&mut self, index: usize, grid: Grid) -> Result<()> {
        let Shell { name: node, outputs, .. } = &self.shells[index];
        let [y] = outputs.as_slice() else { return Ok(()) };
        let Some(edge) = self.values[y].edge else { return Ok(()) };
        self.annotations.ranges.insert(edge.index, grid.range()?);
        // The model in integers takes u8 codes as they are, and makes floats of them itself.
        if grid.dtype == DType::U8 {
            self.annotations.names.entry(edge.index).or_default()[1] = Some(FileName { value: y.clone(), node: node.clone() });
        }
        Ok(())
    }

    /// A node that only moves codes does so with the floats that they stand for.
    pub(super) fn move_floats(&mut self, call: &mut Call<'_>) {
        let codes = |source: &Source<'_>| if let Source::Name(name) = source { self.values[*name].codes } else { None };
        let moves = MOVERS.contains(&call.operator) || (call.operator == "MaxPool" && call.outputs == 1);
        let count = match (call.operator, moves) {
            ("Concat", _) => call.sources.len(),
            (_, moves) => usize::from(moves),
        };
        let Some(Codes { grid, .. }) = call.sources.first().filter(|_| call.domain.is_empty() && count > 0).and_then(codes) else { return };
        let found: Option<Vec<Codes>> =
            call.sources[..count].iter().map(|source| codes(source).filter(|codes| codes.grid == grid)).collect();
        for (i, Codes { of, .. }) in found.iter().flatten().enumerate() {
            call.sources[i] = Source::Edge(*of);
            call.arguments[i] = Some(Argument { dtype: DType::F32, rank: call.rank(i), constant: None, weights: None });
        }
        call.grid = found.map(|_| grid);
    }

    /// The floats that `name`, a value in codes, stands for.
    pub(super) fn floats(&mut self, name: &str, grid: Grid) -> Result<Edge> {
        if let Some(codes) = self.values[name].codes.filter(|codes| codes.grid == grid) {
            return Ok(codes.of);
        }
        if let Some((_, edge)) = self.made.get(name).into_iter().flatten().find(|(known, _)| *known == grid) {
            return Ok(*edge);
        }
        let codes = self.edge(name)?;
        let [scale, zero_point] = self.grid_edges(name, grid)?;
        let node = self.free(&format!("{name}/dequantized"));
        let edge = self.builder.add(&node, DequantizeLinear::new(1, 0, None), &[codes, scale, zero_point])?;
        self.annotations.ranges.insert(edge.index, grid.range()?);
        self.made.entry(name.to_owned()).or_default().push((grid, edge));
        Ok(edge)
    }

    /// Says of a name that it stands for these codes.
    fn set_codes(&mut self, name: &str, rank: Option<usize>, codes: Codes) {
        let file = FileName { value: name.to_owned(), node: self.shells[codes.writer].name.clone() };
        self.annotations.names.entry(codes.of.index).or_default()[0].get_or_insert(file);
        self.aliases.insert(name.to_owned());
        self.values.insert(name.to_owned(), Known { dtype: codes.grid.dtype, rank, codes: Some(codes), ..Known::default() });
    }

    /// Says of a name that it stands for these codes, of a value that is rounded to them for whoever reads it.
    pub(super) fn write_codes(&mut self, name: &str, rank: Option<usize>, codes: Codes) -> Result<()> {
        self.annotations.ranges.insert(codes.of.index, codes.grid.range()?);
        self.set_codes(name, rank, codes);
        Ok(())
    }

    /// The codes as a value of the model.
    pub(super) fn real_codes(&mut self, name: &str, codes: Codes) -> Result<Edge> {
        let [scale, zero_point] = self.grid_edges(name, codes.grid)?;
        let node = self.free(&self.shells[codes.writer].name);
        let edge = self.builder.add_as(&node, name, QuantizeLinear::new(1, 0, None), &[codes.of, scale, zero_point])?;
        let names = self.annotations.names.entry(codes.of.index).or_default();
        // The model in integers holds u8 codes; others have the name for themselves.
        if codes.grid.dtype != DType::U8 && names[0].as_ref().is_some_and(|file| file.value == name) {
            names[0] = None;
        }
        Ok(edge)
    }

    /// The value `edge`, called `name`, rounded to the grid: itself if nobody wants it otherwise, else a copy.
    fn rounded(&mut self, edge: Edge, name: &str, grid: Grid) -> Result<Edge> {
        let range = grid.range()?;
        match self.annotations.ranges.get(&edge.index) {
            Some(known) if *known == range => return Ok(edge),
            None if self.is_only_quantized(name, grid) => {
                self.annotations.ranges.insert(edge.index, range);
                return Ok(edge);
            }
            _ => {}
        }
        let copies = self.copies.get(&edge.index).into_iter().flatten();
        if let Some((_, copy)) = copies.into_iter().find(|(known, _): &&(CodeRange, Edge)| *known == range) {
            return Ok(*copy);
        }
        let node = self.free(&format!("{name}/rounded"));
        let copy = self.builder.add(&node, Identity, &[edge])?;
        self.annotations.ranges.insert(copy.index, range);
        self.copies.entry(edge.index).or_default().push((range, copy));
        Ok(copy)
    }

    /// Whether whoever reads the value rounds it to this grid, or looks at its shape alone.
    fn is_only_quantized(&self, name: &str, grid: Grid) -> bool {
        let constant = |name: &String| Some(Argument::constant(self.values.get(name)?.constant.clone()?));
        let same = |&reader: &usize| {
            let Shell { operator, inputs, .. } = &self.shells[reader];
            match (operator.as_str(), inputs.as_slice()) {
                ("Shape" | "Size", _) => true,
                ("QuantizeLinear", [x, parameters @ ..]) if x == name && !parameters.iter().any(|other| other == name) => {
                    let arguments: Vec<_> = parameters.iter().map(constant).collect();
                    let missing = arguments.iter().any(Option::is_none);
                    let dtype = arguments.get(1).and_then(Option::as_ref).map_or(DType::U8, |zero| zero.dtype);
                    !missing && Grid::of(&arguments, [0, 1], dtype) == Some(grid)
                }
                _ => false,
            }
        };
        !self.outputs.contains(name) && self.readers.get(name).into_iter().flatten().all(same)
    }

    fn grid_edges(&mut self, name: &str, grid: Grid) -> Result<[Edge; 2]> {
        let [scale, zero_point]: [Value; 2] = grid.values()?;
        let names = [self.free(&format!("{name}/scale")), self.free(&format!("{name}/zero_point"))];
        Ok([self.builder.constant(&names[0], scale)?, self.builder.constant(&names[1], zero_point)?])
    }
}
