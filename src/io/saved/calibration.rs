//! A calibration as JSON: the scales of values, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::Real;
use crate::convert::Calibration;
use crate::error::Result;
use crate::tensor::{Granularity, QParams};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    activations: BTreeMap<String, Parameters>,
    #[serde(default)]
    shapes: Vec<Vec<usize>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    qmin: i32,
    qmax: i32,
    scales: Vec<Real>,
    zero_points: Vec<i32>,
    granularity: Grain,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Grain {
    Tensor,
    Channel { axis: usize },
    Group { axis: usize, size: usize },
}

pub fn encode(calibration: &Calibration) -> Entry {
    let parameters = |params: &QParams| Parameters {
        qmin: params.qmin(),
        qmax: params.qmax(),
        scales: params.scales().iter().copied().map(Real).collect(),
        zero_points: params.zero_points().to_vec(),
        granularity: match params.granularity() {
            Granularity::PerTensor => Grain::Tensor,
            Granularity::PerChannel { axis } => Grain::Channel { axis },
            Granularity::PerGroup { axis, size } => Grain::Group { axis, size },
        },
    };
    let activations = calibration.activations().map(|(name, params)| (name.to_owned(), parameters(params))).collect();
    Entry { activations, shapes: calibration.shapes().to_vec() }
}

pub fn decode(entry: Entry) -> Result<Calibration> {
    let mut calibration = Calibration::new();
    for (name, Parameters { qmin, qmax, scales, zero_points, granularity }) in entry.activations {
        let granularity = match granularity {
            Grain::Tensor => Granularity::PerTensor,
            Grain::Channel { axis } => Granularity::PerChannel { axis },
            Grain::Group { axis, size } => Granularity::PerGroup { axis, size },
        };
        let scales = scales.into_iter().map(|scale| scale.0).collect();
        calibration.insert(&name, QParams::new(scales, zero_points, granularity, qmin, qmax).map_err(|e| e.in_layer(&name))?);
    }
    Ok(calibration.with_shapes(entry.shapes))
}
