//! Progress and cancellation, the same for every verb that takes time.

use std::fmt;
use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// One report: `done` of `total` steps of `stage` are finished and `item` comes next.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Step<'a> {
    /// What is running, for instance `quantize`.
    pub stage: &'static str,
    /// The item that comes next, for instance a layer's name.
    pub item: &'a str,
    /// Items finished.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// A caller's view into long work: called before each step, and able to stop it.
///
/// A verb that was stopped returns [`Error::Cancelled`](crate::Error::Cancelled) and changes nothing.
///
/// ```
/// use std::ops::ControlFlow;
/// let mut progress = lowprec::Progress::new(|step| {
///     eprintln!("{} {}/{}: {}", step.stage, step.done, step.total, step.item);
///     ControlFlow::Continue(())
/// });
/// # let _ = &mut progress;
/// ```
#[derive(Default)]
pub struct Progress<'a> {
    callback: Option<Box<Callback<'a>>>,
}

type Callback<'a> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'a;

impl<'a> Progress<'a> {
    /// Reports to `callback`, which returns [`ControlFlow::Break`] to cancel.
    pub fn new(callback: impl FnMut(Step<'_>) -> ControlFlow<()> + 'a) -> Self {
        Progress { callback: Some(Box::new(callback)) }
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Progress::default()
    }

    /// The same caller, for a verb inside another.
    pub(crate) fn lend(&mut self) -> Progress<'_> {
        match &mut self.callback {
            Some(callback) => Progress::new(callback),
            None => Progress::silent(),
        }
    }

    /// Tells the caller what comes next.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the caller wants to stop.
    pub fn step(&mut self, stage: &'static str, item: &str, done: usize, total: usize) -> Result<()> {
        let Some(callback) = &mut self.callback else { return Ok(()) };
        match callback(Step { stage, item, done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { stage, done, total }),
        }
    }
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("reports", &self.callback.is_some()).finish()
    }
}
