//! The digits as samples to train with.

use lowprec::io::safetensors;
use lowprec::quant::random_unit;
use lowprec::{Error, Result, Tensor, metrics};

const SIDE: usize = 8;

/// Images `[n, 1, 8, 8]` in 0 to 1, and the digits that they show.
pub struct Digits {
    pub images: Tensor,
    pub labels: Vec<usize>,
}

impl Digits {
    /// The images of a part: `train` (900), `validate` (250) or `test` (647).
    pub fn load(part: &str) -> Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits.safetensors");
        let data = safetensors::read_file(path)?;
        let codes = |what: &str| data.get(&format!("{part}.{what}")).and_then(|value| value.get::<u8>());
        let (Some(images), Some(labels)) = (codes("images"), codes("labels")) else {
            return Err(Error::Format { what: path.into(), format: "digits data", reason: format!("no u8 images and labels of `{part}`") });
        };
        let pixels = images.as_slice().iter().map(|&grey| f32::from(grey) / 16.0).collect();
        Ok(Digits { images: Tensor::new(images.dims(), pixels)?, labels: labels.as_slice().iter().map(|&digit| digit.into()).collect() })
    }

    /// These images, each moved by -1, 0 or 1 pixel in either direction, as the seed decides; without one they stay.
    pub fn batch(&self, rows: &[usize], seed: Option<u64>) -> Result<(Tensor, Vec<usize>)> {
        let mut pixels = vec![0.0; rows.len() * SIDE * SIDE];
        for (i, (&row, to)) in rows.iter().zip(pixels.chunks_exact_mut(SIDE * SIDE)).enumerate() {
            let from = &self.images.as_slice()[row * SIDE * SIDE..][..SIDE * SIDE];
            let shift = |axis: u64| seed.map_or(1, |seed| (3.0 * random_unit(seed, 2 * i as u64 + axis)) as usize);
            let (down, right) = (shift(0), shift(1));
            let at = |to: usize, shift: usize| (to + shift).checked_sub(1).filter(|&at| at < SIDE);
            for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
                if let (Some(row), Some(column)) = (at(y, down), at(x, right)) {
                    to[y * SIDE + x] = from[row * SIDE + column];
                }
            }
        }
        Ok((Tensor::new([rows.len(), 1, SIDE, SIDE], pixels)?, rows.iter().map(|&row| self.labels[row]).collect()))
    }

    /// Images that these logits get right, in percent.
    pub fn right(&self, logits: &Tensor) -> Result<f64> {
        let top = metrics::top1(logits.as_slice(), 10)?;
        let right = top.iter().zip(&self.labels).filter(|(top, label)| top == label).count();
        Ok(100.0 * right as f64 / self.labels.len() as f64)
    }
}
