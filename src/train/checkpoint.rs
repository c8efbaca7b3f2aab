//! A training on its way, as named tensors.

use super::network::Trainable;
use super::optim::Optimizer;
use super::parameter::{counted, take_count};
use crate::error::Result;
use crate::nn::StateDict;
use crate::num::NonFinite;
use crate::tensor::Value;

const NETWORK: &str = "network.";
const OPTIMIZER: &str = "optimizer.";
const STEP: &str = "step";

/// Everything that a training needs to go on after `step` steps, by name: what the network learned and its arithmetic remembers, what
/// the optimizer remembers, and the number of steps. [`Training::with_steps`](super::Training::with_steps) has an example.
///
/// ```no_run
/// # use lowprec::train::{Network, Sgd, checkpoint};
/// # #[cfg(feature = "safetensors")]
/// # fn of(network: &Network, sgd: &Sgd) -> lowprec::Result<Vec<u8>> {
/// let tensors = checkpoint(network, sgd, 1000);
/// lowprec::io::safetensors::write(tensors.iter().map(|(name, value)| (name.as_str(), value)), &Default::default())
/// # }
/// ```
pub fn checkpoint(network: &dyn Trainable, optimizer: &dyn Optimizer, step: usize) -> Vec<(String, Value)> {
    let under = |prefix: &str, state: Vec<(String, Value)>| {
        state.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)).collect::<Vec<_>>()
    };
    let mut tensors = under(NETWORK, network.state());
    tensors.extend(under(OPTIMIZER, optimizer.state()));
    tensors.push((STEP.to_owned(), counted(step as u64)));
    tensors
}

/// Takes a [`checkpoint`] into a network of the same model and configuration and an optimizer of the same kind, and gives the number of
/// steps; on an error nothing changes.
///
/// # Errors
/// Those of [`Trainable::load_state`] and [`Optimizer::load_state`]; [`Error::Unused`](crate::Error::Unused) for tensors under
/// `network.` and `optimizer.` that neither takes; others stay in `state`.
pub fn resume(network: &mut dyn Trainable, optimizer: &mut dyn Optimizer, state: &mut StateDict) -> Result<usize> {
    let mut rest = state.clone();
    let step = take_count(&mut rest, STEP)?;
    let (mut of_network, mut of_optimizer) = (rest.split_off(NETWORK), rest.split_off(OPTIMIZER));
    let (before, optimizer_before) = (network.state(), optimizer.state());
    let load = || {
        network.load_state(&mut of_network)?;
        optimizer.load_state(&mut of_optimizer, network.parameters())?;
        of_network.finish().and(of_optimizer.finish())
    };
    if let Err(error) = load() {
        // As it was, be it NaN.
        let state = |tensors| StateDict::new(tensors).map(|state| state.with_non_finite(NonFinite::Saturate));
        network.load_state(&mut state(before)?)?;
        optimizer.load_state(&mut state(optimizer_before)?, network.parameters())?;
        return Err(error);
    }
    *state = rest;
    Ok(step as usize)
}
