//! What all observers share: one summary for each scale, and which tensors and schemes go with them.

use crate::error::{Error, Result};
use crate::num::NonFinite;
use crate::quant::Scheme;
use crate::tensor::{Granularity, QParams, Tensor, repeat};

/// One `S` a scale. `S::default()` is the summary of no value.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Summaries<S> {
    pub granularity: Granularity,
    pub non_finite: NonFinite,
    // `None` before the first tensor.
    list: Option<Vec<S>>,
    // Of groups, the shape of the first tensor: the number of groups alone does not tell where they lie.
    grouped: Option<Vec<usize>>,
}

impl<S: Clone> Summaries<S> {
    pub fn new(granularity: Granularity) -> Self {
        Summaries { granularity, non_finite: NonFinite::Error, list: None, grouped: None }
    }

    /// All of them, none before the first tensor.
    pub fn as_slice(&self) -> &[S] {
        self.list.as_deref().unwrap_or_default()
    }

    /// Those for the scales of `x`, which are `nothing` at first.
    pub fn for_tensor(&mut self, x: &Tensor, nothing: S) -> Result<&mut [S]> {
        let grouped = matches!(self.granularity, Granularity::PerGroup { .. }).then_some(x.shape().dims());
        self.fit(self.granularity.parameters(x.shape())?, grouped, nothing)
    }

    fn fit(&mut self, parameters: usize, grouped: Option<&[usize]>, nothing: S) -> Result<&mut [S]> {
        if let (Some(known), Some(shape)) = (&self.grouped, grouped)
            && known != shape
        {
            return Err(Error::shape("observed tensor", format!("{known:?}, as before, whose groups are measured"), shape));
        }
        match &self.list {
            Some(known) if known.len() != parameters => {
                return Err(Error::length(format!("list of ranges, {:?}", self.granularity), known.len(), parameters));
            }
            Some(_) => {}
            None => self.list = Some(repeat(nothing, parameters, grouped.unwrap_or(&[parameters]))?),
        }
        self.grouped = self.grouped.take().or_else(|| grouped.map(<[_]>::to_vec));
        Ok(self.list.as_deref_mut().unwrap_or_default())
    }

    /// Joins each summary of `other` to its own by `join`.
    pub fn merge(&mut self, other: &Self, nothing: S, mut join: impl FnMut(&mut S, &S)) -> Result<()> {
        if other.granularity != self.granularity {
            return Err(Error::Unsupported {
                what: format!("merging a {:?} observer into a {:?} one", other.granularity, self.granularity),
                way_out: "observe all parts with one granularity".into(),
            });
        }
        if let Some(list) = &other.list {
            let own = self.fit(list.len(), other.grouped.as_deref(), nothing)?;
            own.iter_mut().zip(list).for_each(|(own, other)| join(own, other));
        }
        Ok(())
    }

    /// The parameters of `scheme`, each found by `choose`.
    pub fn qparams(&self, scheme: &Scheme, choose: impl FnMut(&S) -> (f32, i32)) -> Result<QParams> {
        scheme.validate()?;
        if scheme.granularity() != self.granularity {
            return Err(Error::Unsupported {
                what: format!("{:?} parameters from a {:?} observer", scheme.granularity(), self.granularity),
                way_out: "give scheme and observer one granularity".into(),
            });
        }
        let Some(list) = &self.list else {
            return Err(Error::Empty { what: "observer".into(), way_out: "observe a tensor before asking for parameters" });
        };
        let (scales, zero_points) = list.iter().map(choose).unzip();
        QParams::of_any_axis(scales, zero_points, self.granularity, scheme.qmin(), scheme.qmax())
    }
}
