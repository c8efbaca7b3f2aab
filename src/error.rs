//! The crate's one error type. Every variant carries the facts (names, numbers) and its message ends in the way out.

use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Messages are lower case, carry the numbers and name the tensor or layer concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error inside a named node of a model.
    #[error("layer `{name}`{}: {source}", operator.as_ref().map_or(String::new(), |operator| format!(" ({operator})")))]
    Layer {
        /// Name of the node.
        name: String,
        /// What it does, where that is known: the file's operator, or the kind of layer.
        operator: Option<String>,
        /// What went wrong in it.
        #[source]
        source: Box<Error>,
    },
    /// A slice, list or buffer has the wrong number of elements.
    #[error("{what} has {got} elements, {expected} expected")]
    Length {
        /// The slice.
        what: String,
        /// Elements that are needed.
        expected: usize,
        /// Elements that were given.
        got: usize,
    },
    /// A tensor has the wrong shape.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor.
        what: String,
        /// The rule that the shape breaks.
        expected: String,
        /// The shape that was given.
        got: Vec<usize>,
    },
    /// The number of elements of a shape does not fit `usize`, or memory has no room for them.
    #[error("shape {shape:?} has more elements than this machine can address or hold")]
    ShapeOverflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// An axis outside the tensor's rank.
    #[error("axis {axis} does not exist in shape {shape:?}: {}", axes(.shape))]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// The shape it was asked of.
        shape: Vec<usize>,
    },
    /// A group size that does not divide its axis.
    #[error("groups of {size} do not divide axis {axis} of length {length}: choose a divisor of {length}")]
    Group {
        /// Elements in a group.
        size: usize,
        /// The axis that is cut into groups.
        axis: usize,
        /// Length of that axis.
        length: usize,
    },
    /// NaN or an infinity where a finite number is needed.
    #[error("{what} holds {value} at index {index}: remove it, or choose `NonFinite::Saturate`")]
    NonFinite {
        /// The tensor.
        what: String,
        /// Flat index of the first such element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A scale that is not a positive finite number.
    #[error("scale {index} is {value}: a scale is a finite number above zero")]
    Scale {
        /// Position in the list of scales.
        index: usize,
        /// The scale.
        value: f32,
    },
    /// A zero point outside the range of the codes.
    #[error("zero point {index} is {value}, outside the codes {qmin} to {qmax}")]
    ZeroPoint {
        /// Position in the list of zero points.
        index: usize,
        /// The zero point.
        value: i32,
        /// Smallest code.
        qmin: i32,
        /// Largest code.
        qmax: i32,
    },
    /// A code outside the range of its type.
    #[error("code {index} is {value}, outside {qmin} to {qmax}")]
    Code {
        /// Flat index of the code.
        index: usize,
        /// The code.
        value: i32,
        /// Smallest code.
        qmin: i32,
        /// Largest code.
        qmax: i32,
    },
    /// A parameter outside what it may be.
    #[error("{what} is {value}: {rule}")]
    Parameter {
        /// The parameter.
        what: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        rule: String,
    },
    /// A sum of products that could leave the range of `i32`.
    #[error("sums over {k} products can leave the range of i32: at most {limit} are exact, so split the layer or leave it in float")]
    Accumulator {
        /// Products in one sum.
        k: usize,
        /// Largest number that always fits.
        limit: usize,
    },
    /// An instruction set that this processor does not have.
    #[error("this processor has no {isa}: choose one of {available}")]
    Isa {
        /// The instruction set asked for.
        isa: &'static str,
        /// Those that are there.
        available: String,
    },
    /// Something is empty that must hold at least one element.
    #[error("{what} is empty: {way_out}")]
    Empty {
        /// What is empty.
        what: String,
        /// What to do.
        way_out: &'static str,
    },
    /// A name that is not there.
    #[error("no {what} is called `{name}`: there are {present}")]
    Unknown {
        /// Kind of thing (input, node, tensor).
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names present.
        present: Names,
    },
    /// A name used twice.
    #[error("two {what}s are called `{name}`: rename one")]
    Duplicate {
        /// Kind of thing.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Tensors left over after a model took its weights.
    #[error("tensors that no layer took: {names}: declare the layers they belong to, or remove them")]
    Unused {
        /// Their names.
        names: Names,
    },
    /// A value of the wrong element type.
    #[error("{what} is {got}, {expected} expected")]
    Type {
        /// The value.
        what: String,
        /// Type needed.
        expected: &'static str,
        /// Type given.
        got: &'static str,
    },
    /// Something asked of a model, layer or scheme that it cannot do.
    #[error("unsupported: {what}; {way_out}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What can be done instead.
        way_out: String,
    },
    /// A quantization request that matches no layer.
    #[error("nothing to quantize: asked for {requested}, and the model holds {present}")]
    NothingToQuantize {
        /// The kinds asked for.
        requested: String,
        /// The kinds that are there, with their number and why they were passed over.
        present: String,
    },
    /// A name pattern that matches nothing.
    #[error("pattern `{pattern}` matches no {what}: there are {present}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What its kind of name belongs to.
        what: &'static str,
        /// The names present.
        present: Names,
    },
    /// A file or byte stream that does not keep to its format.
    #[error("{what} is not valid {format}: {reason}")]
    Format {
        /// The file, or `input` for bytes.
        what: String,
        /// The format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file that can't be read.
    #[error("can't read `{path}`: {source}")]
    File {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that can't be written.
    #[error("can't write `{path}`: {source}")]
    Write {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The caller's progress callback asked to stop.
    #[error("cancelled by the caller at {stage}, {done} of {total} done")]
    Cancelled {
        /// What was running.
        stage: &'static str,
        /// Steps finished.
        done: usize,
        /// Steps in all.
        total: usize,
    },
}

impl Error {
    /// This error, inside the node `name`. An error that already names its node is returned as it is.
    pub(crate) fn in_layer(self, name: &str) -> Self {
        match self {
            Error::Layer { .. } | Error::Cancelled { .. } => self,
            source => Error::Layer { name: name.to_owned(), operator: None, source: Box::new(source) },
        }
    }

    /// The same of a node of which is known what it does.
    pub(crate) fn in_node(self, name: &str, operator: &dyn fmt::Display) -> Self {
        match self.in_layer(name) {
            Error::Layer { name, operator: None, source } => Error::Layer { name, operator: Some(operator.to_string()), source },
            error => error,
        }
    }

    /// The error without the [`Error::Layer`] around it.
    pub fn kind(&self) -> &Error {
        match self {
            Error::Layer { source, .. } => source.kind(),
            error => error,
        }
    }

    /// This error, without the node around it.
    pub(crate) fn without_layer(self) -> Self {
        match self {
            Error::Layer { source, .. } => *source,
            error => error,
        }
    }

    pub(crate) fn length(what: impl Into<String>, expected: usize, got: usize) -> Self {
        Error::Length { what: what.into(), expected, got }
    }

    pub(crate) fn shape(what: impl Into<String>, expected: impl Into<String>, got: &[usize]) -> Self {
        Error::Shape { what: what.into(), expected: expected.into(), got: got.to_vec() }
    }

    pub(crate) fn parameter(what: &'static str, value: impl fmt::Debug, rule: impl Into<String>) -> Self {
        Error::Parameter { what, value: format!("{value:?}"), rule: rule.into() }
    }
}

fn axes(shape: &[usize]) -> String {
    match shape.len() {
        0 => "a scalar has no axes, so take it per tensor, or reshape it".into(),
        rank => format!("use 0 to {}, or a tensor of higher rank", rank - 1),
    }
}

/// A list of names that prints its first twenty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// The names.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl<S: Into<String>> FromIterator<S> for Names {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Names(names.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, name) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}`{name}`", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}
