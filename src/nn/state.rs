//! Weights by name, as PyTorch's `state_dict` has them.

use std::collections::BTreeMap;

use crate::error::{Error, Names, Result};
use crate::num::NonFinite;
use crate::tensor::{Tensor, Value};

/// Named tensors on their way into a model: layers take theirs out, and what is left at the end is an error.
///
/// ```
/// use lowprec::nn::{Linear, StateDict};
/// use lowprec::Tensor;
/// let weight = Tensor::new([2, 3], vec![0.5; 6])?;
/// let mut state = StateDict::new([("fc.weight".to_owned(), weight.into())])?;
/// let fc = Linear::from_state(&mut state, "fc", 3, 2, false)?;
/// state.finish()?;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StateDict {
    tensors: BTreeMap<String, Value>,
    non_finite: NonFinite,
}

impl StateDict {
    /// These tensors.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when two have one name.
    pub fn new(tensors: impl IntoIterator<Item = (String, Value)>) -> Result<Self> {
        let mut state = StateDict::default();
        for (name, value) in tensors {
            if state.tensors.contains_key(&name) {
                return Err(Error::Duplicate { what: "tensor", name });
            }
            state.tensors.insert(name, value);
        }
        Ok(state)
    }

    /// With another policy for NaN and infinities: to hand them out as they are instead of refusing them. Float layers then
    /// compute with them, and quantization takes or refuses them by its own policy.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.non_finite = policy;
        self
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.tensors.get(name)
    }

    /// Takes out the float tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// [`Error::Unknown`] when it is missing, [`Error::Shape`], [`Error::Type`], and [`Error::NonFinite`] for NaN or
    /// infinities in it, unless [`StateDict::with_non_finite`] takes them; all name the tensor, and it stays where it was.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let present = || self.names().collect::<Names>();
        let value = self.tensors.get(name).ok_or_else(|| Error::Unknown { what: "tensor", name: name.to_owned(), present: present() })?;
        let what = || format!("tensor `{name}`");
        let tensor = value.get::<f32>().ok_or_else(|| Error::Type { what: what(), expected: "f32", got: value.dtype().name() })?;
        if tensor.dims() != shape {
            return Err(Error::shape(what(), format!("{shape:?}"), tensor.dims()));
        }
        self.non_finite.check(&what(), tensor.as_slice())?;
        let tensor = tensor.clone();
        self.tensors.remove(name);
        Ok(tensor)
    }

    /// Takes out all tensors whose names begin with `prefix`, under what comes after it.
    #[must_use]
    pub fn split_off(&mut self, prefix: &str) -> StateDict {
        let taken: Vec<String> = self.names().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect();
        let take = |name: String| self.tensors.remove(&name).map(|value| (name[prefix.len()..].to_owned(), value));
        StateDict { tensors: taken.into_iter().filter_map(take).collect(), non_finite: self.non_finite }
    }

    /// Drops the tensor of that name; says whether it was there.
    pub fn discard(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// Ends the loading of a model.
    ///
    /// # Errors
    /// [`Error::Unused`] when tensors are left that no layer took, naming them.
    pub fn finish(self) -> Result<()> {
        match self.tensors.is_empty() {
            true => Ok(()),
            false => Err(Error::Unused { names: self.tensors.into_keys().collect() }),
        }
    }
}
