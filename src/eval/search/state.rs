//! What a search has measured, so that another one goes on from there.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};

/// What becomes of a layer in a mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Choice {
    /// As the configuration has it.
    Configured,
    /// In int8, its input quantized at run time.
    Dynamic,
    /// As it is.
    Float,
}

/// Which layers are not as the configuration has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mix {
    layers: BTreeMap<String, Choice>,
}

impl Mix {
    /// Another choice for a layer.
    pub fn set(&mut self, layer: &str, choice: Choice) {
        match choice {
            Choice::Configured => self.layers.remove(layer),
            other => self.layers.insert(layer.to_owned(), other),
        };
    }

    /// The layers with a choice of their own, by name.
    pub fn layers(&self) -> impl Iterator<Item = (&str, Choice)> {
        self.layers.iter().map(|(name, choice)| (name.as_str(), *choice))
    }

    /// The layers left in float.
    pub fn in_float(&self) -> Vec<&str> {
        self.layers().filter(|(_, choice)| *choice == Choice::Float).map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |what: &str, choice: Choice| -> fmt::Result {
            let names: Vec<&str> = self.layers().filter(|(_, other)| *other == choice).map(|(name, _)| name).collect();
            match names.as_slice() {
                [] => Ok(()),
                [one] => write!(f, "{what} {one} "),
                [first, rest @ ..] => write!(f, "{what} {first} and {} more ", rest.len()),
            }
        };
        list("float", Choice::Float)?;
        list("dynamic", Choice::Dynamic)?;
        if self.layers.is_empty() { f.write_str("all as configured") } else { Ok(()) }
    }
}

/// What was measured of a mix.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Measured {
    /// The caller's metric.
    pub metric: f64,
    /// SQNR of the outputs against the float model's.
    pub sqnr_db: f64,
    /// Bytes of the model.
    pub bytes: usize,
}

/// All that a search has measured. Kept (with the feature `serde`, in a file), it lets another search go on where this one ended.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SearchState {
    /// Of the layers, what the float model makes of the data, the metric's word on that, the configuration and the samples that calibrate.
    fingerprint: u64,
    measured: Vec<(Mix, Measured)>,
    /// What was found of time, of which another run would find something else.
    #[cfg_attr(feature = "serde", serde(default))]
    pub(super) times: Option<Times>,
}

/// Times of layers, for [`Objective::Fastest`](super::Objective::Fastest).
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Times {
    /// Seconds that each saves in int8.
    pub saved: Vec<(String, f64)>,
    /// Layers without which in int8 the whole is faster.
    pub slower: Vec<String>,
}

impl SearchState {
    /// Number of mixes measured.
    pub fn len(&self) -> usize {
        self.measured.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.measured.is_empty()
    }

    pub(super) fn get(&self, mix: &Mix) -> Option<Measured> {
        self.measured.iter().find(|(other, _)| other == mix).map(|(_, measured)| *measured)
    }

    pub(super) fn insert(&mut self, mix: Mix, measured: Measured) {
        self.measured.push((mix, measured));
    }

    /// Makes this the state of a search over what the fingerprint is of.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it is another one's.
    pub(super) fn claim(&mut self, Fingerprint(fingerprint): Fingerprint) -> Result<()> {
        if !self.measured.is_empty() && self.fingerprint != fingerprint {
            return Err(Error::Unsupported {
                what: "a search that goes on from the state of another model, other data, another configuration or another metric".into(),
                way_out: "begin anew, with an empty state".into(),
            });
        }
        self.fingerprint = fingerprint;
        Ok(())
    }
}

/// All that a search depends on, in a number: FNV-1a, as only that two are not the same by chance matters.
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub fn new() -> Self {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }

    /// What follows is told apart by its length too.
    pub fn add(&mut self, bytes: &[u8]) {
        let all = (bytes.len() as u64).to_le_bytes().into_iter().chain(bytes.iter().copied());
        self.0 = all.fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    }
}
