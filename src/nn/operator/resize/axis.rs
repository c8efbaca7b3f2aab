//! One axis of a resize: where each output element lies in the input, and how much of which elements it is.

use crate::error::{Error, Result};

/// How elements are found between those of the input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ResizeMode {
    /// The nearest element.
    Nearest(NearestMode),
    /// Straight lines between neighbours.
    Linear,
    /// Cubic curves through neighbours, with this coefficient (ONNX's `cubic_coeff_a`, commonly -0.75 or -0.5).
    Cubic(f32),
}

/// Which element is the nearest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NearestMode {
    /// The nearer one, the lower of two equally near.
    #[default]
    RoundPreferFloor,
    /// The nearer one, the higher of two equally near.
    RoundPreferCeil,
    /// The lower one.
    Floor,
    /// The higher one.
    Ceil,
}

/// Where an output element lies in the input: ONNX's `coordinate_transformation_mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Coordinates {
    /// `(x + 0.5) / scale - 0.5`
    #[default]
    HalfPixel,
    /// The same around the middle of the input, where the output's length is not `scale * length`.
    HalfPixelSymmetric,
    /// [`Coordinates::HalfPixel`], but 0 for an output of one element.
    PytorchHalfPixel,
    /// First on first, last on last.
    AlignCorners,
    /// `x / scale`
    Asymmetric,
    /// First and last on the ends of a region, given in parts of the input's length (input 1); what lies outside the input is
    /// the extrapolation value.
    TfCropAndResize,
}

impl ResizeMode {
    /// The standard's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            ResizeMode::Nearest(_) => "nearest",
            ResizeMode::Linear => "linear",
            ResizeMode::Cubic(_) => "cubic",
        }
    }
}

impl NearestMode {
    /// The standard's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            NearestMode::RoundPreferFloor => "round_prefer_floor",
            NearestMode::RoundPreferCeil => "round_prefer_ceil",
            NearestMode::Floor => "floor",
            NearestMode::Ceil => "ceil",
        }
    }
}

impl Coordinates {
    /// The standard's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Coordinates::HalfPixel => "half_pixel",
            Coordinates::HalfPixelSymmetric => "half_pixel_symmetric",
            Coordinates::PytorchHalfPixel => "pytorch_half_pixel",
            Coordinates::AlignCorners => "align_corners",
            Coordinates::Asymmetric => "asymmetric",
            Coordinates::TfCropAndResize => "tf_crop_and_resize",
        }
    }
}

/// One axis that is resized.
#[derive(Debug, Clone, Copy)]
pub(super) struct Along {
    pub length: usize,
    pub out: usize,
    pub scale: f64,
    /// Start and end of the region, 0 to 1 for all of it.
    pub region: (f64, f64),
    pub changes: bool,
}

impl Default for Along {
    fn default() -> Self {
        Along { length: 1, out: 1, scale: 1.0, region: (0.0, 1.0), changes: false }
    }
}

/// What the tables of all axes are made by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    pub mode: ResizeMode,
    pub coordinates: Coordinates,
    pub exclude_outside: bool,
    pub antialias: bool,
}

/// Index of an element outside the region that is extrapolated.
pub(super) const OUTSIDE: usize = usize::MAX;

/// The cubic kernel at a distance.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    match x {
        _ if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        _ => 0.0,
    }
}

impl Rule {
    /// How far the kernel reaches, in input elements, and how much narrower it is than without antialias.
    fn reach(&self, along: &Along) -> (f64, f64) {
        let narrow = if self.antialias { along.scale.min(1.0) } else { 1.0 };
        let own = if matches!(self.mode, ResizeMode::Cubic(_)) { 2.0 } else { 1.0 };
        (own / narrow, narrow)
    }

    /// Elements that make one of the output.
    ///
    /// # Errors
    /// [`Error::Parameter`] when there are more in all than input and output explain.
    pub fn taps(&self, along: &Along) -> Result<usize> {
        if matches!(self.mode, ResizeMode::Nearest(_)) {
            return Ok(1);
        }
        let taps = 2.0 * self.reach(along).0.ceil();
        let most = 16.0 * (along.length as f64 + along.out as f64) + 64.0;
        match taps * along.out as f64 <= most {
            true => Ok(taps as usize),
            false => Err(Error::parameter("scale", along.scale, format!("makes {} elements of {}: too small", along.out, along.length))),
        }
    }

    /// The place of output element `x` in the input; `None` where it is extrapolated.
    fn place(&self, along: &Along, x: usize) -> Option<f64> {
        let (x, scale, length) = (x as f64, along.scale, along.length as f64);
        // As the standard's reference has it: not rounded.
        let out = scale * length;
        let half = (x + 0.5) / scale - 0.5;
        Some(match self.coordinates {
            Coordinates::HalfPixel => half,
            Coordinates::HalfPixelSymmetric => length / 2.0 * (1.0 - along.out as f64 / out) + half,
            Coordinates::PytorchHalfPixel if out == 1.0 => -0.5,
            Coordinates::PytorchHalfPixel => half,
            Coordinates::AlignCorners if out == 1.0 => 0.0,
            Coordinates::AlignCorners => x * (length - 1.0) / (out - 1.0),
            Coordinates::Asymmetric => x / scale,
            Coordinates::TfCropAndResize => {
                let ((start, end), last) = (along.region, length - 1.0);
                let inside = if out == 1.0 { (end - start) * last / 2.0 } else { x * (end - start) * last / (out - 1.0) };
                return Some(inside + start * last).filter(|at| (0.0..=last).contains(at));
            }
        })
    }

    /// Fills the tables of one axis: for each output element `taps` indices and weights, or [`OUTSIDE`].
    pub fn fill(&self, along: &Along, indices: &mut [usize], mut weight: impl FnMut(usize, f64)) {
        let last = along.length - 1;
        let taps = indices.len() / along.out.max(1);
        let (reach, narrow) = self.reach(along);
        let steps = reach.ceil() as i64;
        for (x, indices) in indices.chunks_exact_mut(taps.max(1)).enumerate() {
            let Some(at) = self.place(along, x) else {
                indices.fill(OUTSIDE);
                continue;
            };
            let clamped = |at: i64| at.clamp(0, last as i64) as usize;
            // Far beyond the ends all is the same as a little beyond; NaN comes from scales that are none.
            let at = if at.is_nan() { 0.0 } else { at.clamp(-4.0 - 2.0 * reach, last as f64 + 4.0 + 2.0 * reach) };
            let (floor, part) = (at.floor() as i64, at - at.floor());
            if let ResizeMode::Nearest(nearest) = self.mode {
                let up = match nearest {
                    NearestMode::RoundPreferFloor => part > 0.5,
                    NearestMode::RoundPreferCeil => part >= 0.5,
                    NearestMode::Floor => false,
                    NearestMode::Ceil => part > 0.0,
                };
                indices[0] = clamped(floor + i64::from(up));
                continue;
            }
            let kernel = |tap: i64| {
                let distance = ((tap - floor) as f64 - part) * narrow;
                match self.mode {
                    ResizeMode::Cubic(a) => cubic(distance, a.into()),
                    _ => (1.0 - distance.abs()).max(0.0),
                }
            };
            let first = floor + 1 - steps;
            let counts = |tap: i64| !self.exclude_outside || (0..=last as i64).contains(&tap);
            let window = first..first + taps as i64;
            // Antialiased kernels are sampled at places that do not add up to one by themselves.
            let normalize = self.antialias || self.exclude_outside;
            let sum: f64 = if normalize { window.clone().filter(|&tap| counts(tap)).map(kernel).sum() } else { 1.0 };
            let sum = if sum == 0.0 { 1.0 } else { sum };
            for (i, tap) in window.enumerate() {
                indices[i] = clamped(tap);
                weight(x * taps + i, if counts(tap) { kernel(tap) / sum } else { 0.0 });
            }
        }
    }
}
