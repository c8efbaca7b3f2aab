//! Pooling of images: a window's gradient goes to its largest element, or in equal parts to all.

use super::{Backward, Differentiable, Forward, Layout, float};
use crate::error::{Error, Result};
use crate::kernels::{Taps, mean_pixels};
use crate::nn::operator::Pool;
use crate::tensor::Tensor;
use crate::train::array::Array;

/// The windows of a pooling over some images.
struct Windows {
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    dilation: [usize; 2],
}

impl Windows {
    /// Calls `f` with each window of `n` images of `h x w`: its number, its two taps, and the pixels under it.
    fn each(&self, [n, _, h, w]: [usize; 4], mut f: impl FnMut(usize, Taps, Taps, &[usize])) {
        let (mut window, mut pixels) = (0, Vec::new());
        for (image, &rows) in (0..n).flat_map(|image| self.rows.iter().map(move |rows| (image, rows))) {
            for &columns in &self.columns {
                pixels.clear();
                for y in (0..rows.count).map(|i| rows.first + i * self.dilation[0]) {
                    let line = (image * h + y) * w + columns.first;
                    pixels.extend((0..columns.count).map(|i| line + i * self.dilation[1]));
                }
                f(window, rows, columns, &pixels);
                window += 1;
            }
        }
    }
}

/// Places of elements are kept in 32 bits.
fn check_places(x: &Array) -> Result<()> {
    match u32::try_from(x.data().len()) {
        Ok(places) if places < u32::MAX => Ok(()),
        _ => Err(Error::Unsupported {
            what: format!("a gradient of the largest of {} elements", x.data().len()),
            way_out: "train with smaller batches".into(),
        }),
    }
}

/// The largest or the mean of each window.
#[derive(Debug)]
pub struct Pooled {
    pool: Pool,
}

impl Pooled {
    pub fn new(pool: Pool) -> Self {
        Pooled { pool }
    }

    fn windows(&self, [_, _, h, w]: [usize; 4]) -> Result<Windows> {
        let ([rows, columns], dilation) = self.pool.image_windows(h, w)?;
        Ok(Windows { rows, columns, dilation })
    }

    /// What a mean divides by.
    fn count(&self, rows: Taps, columns: Taps) -> f32 {
        let padded = self.pool.averages_images() == Some(true);
        (if padded { rows.padded * columns.padded } else { rows.count * columns.count }) as f32
    }
}

impl Differentiable for Pooled {
    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let dims @ [n, c, ..] = x.image_dims()?;
        let windows = self.windows(dims)?;
        let out = [n, c, windows.rows.len(), windows.columns.len()];
        let mut y = vec![0.0f32; out.iter().product()];
        let data = x.data();
        if self.pool.is_max() {
            check_places(x)?;
            let mut largest = vec![u32::MAX; y.len()];
            y.fill(f32::NEG_INFINITY);
            windows.each(dims, |window, _, _, pixels| {
                let (y, largest) = (&mut y[window * c..][..c], &mut largest[window * c..][..c]);
                for &pixel in pixels {
                    for (((y, largest), &x), at) in y.iter_mut().zip(largest.iter_mut()).zip(&data[pixel * c..][..c]).zip(pixel * c..) {
                        // The first of equals wins, and NaN over all.
                        let wins = (x > *y) | x.is_nan() | (*largest == u32::MAX);
                        *y = if wins { x } else { *y };
                        *largest = if wins { at as u32 } else { *largest };
                    }
                }
            });
            run.saved.indices = largest;
        } else {
            windows.each(dims, |window, rows, columns, pixels| {
                let y = &mut y[window * c..][..c];
                for &pixel in pixels {
                    y.iter_mut().zip(&data[pixel * c..][..c]).for_each(|(y, x)| *y += x);
                }
                let count = self.count(rows, columns);
                y.iter_mut().for_each(|y| *y /= count);
            });
        }
        Array::images(out, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let (x, gradient) = (float(run.inputs, 0)?, run.gradient.data());
        let dims @ [_, c, ..] = x.image_dims()?;
        let mut by_input = vec![0.0f32; x.data().len()];
        if self.pool.is_max() {
            for (&at, g) in run.saved.indices.iter().zip(gradient).filter(|(at, _)| **at != u32::MAX) {
                by_input[at as usize] += g;
            }
        } else {
            self.windows(dims)?.each(dims, |window, rows, columns, pixels| {
                let (gradient, count) = (&gradient[window * c..][..c], self.count(rows, columns));
                for &pixel in pixels {
                    by_input[pixel * c..][..c].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g / count);
                }
            });
        }
        run.by_input[0] = Some(Array::like(x, by_input)?);
        Ok(())
    }
}

/// `[n, c, ..]` with at least one pixel: images, channels and pixels, and the dimensions of one value a channel.
fn whole(x: &Array) -> Result<([usize; 3], Vec<usize>)> {
    let dims = x.dims();
    match *dims {
        [n, c, ref rest @ ..] if !rest.contains(&0) => {
            Ok(([n, c, rest.iter().product()], dims[..2].iter().copied().chain(rest.iter().map(|_| 1)).collect()))
        }
        _ => Err(Error::shape("input", "[n, c, ..] with at least one pixel", &dims)),
    }
}

/// One value for each channel.
fn of_channels(dims: Vec<usize>, y: Vec<f32>) -> Result<Array> {
    match *dims {
        [n, c, h, w] => Array::images([n, c, h, w], y),
        _ => Ok(Array::row_major(Tensor::new(dims, y)?)),
    }
}

/// The mean of each channel over all pixels.
#[derive(Debug)]
pub struct Mean;

impl Differentiable for Mean {
    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let ([n, c, pixels], dims) = whole(x)?;
        let mut y = vec![0.0; n * c];
        for (image, y) in x.by_pixel().chunks_exact((pixels * c).max(1)).zip(y.chunks_exact_mut(c.max(1))) {
            mean_pixels(image, y);
        }
        of_channels(dims, y)
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let x = float(run.inputs, 0)?;
        let ([_, c, pixels], _) = whole(x)?;
        let share = 1.0 / pixels as f32;
        let images = run.gradient.data().chunks_exact(c.max(1));
        let by_input = images.flat_map(|g| (0..pixels).flat_map(move |_| g.iter().map(move |g| g * share))).collect();
        run.by_input[0] = Some(Array::of_pixels(x, by_input)?);
        Ok(())
    }
}

/// The largest of each channel over all pixels, the first of equals; NaN over all.
#[derive(Debug)]
pub struct Largest;

impl Differentiable for Largest {
    fn layout(&self) -> Layout {
        Layout::ChannelsLast
    }

    fn forward(&self, run: &mut Forward<'_>) -> Result<Array> {
        let x = float(run.inputs, 0)?;
        let ([n, c, pixels], dims) = whole(x)?;
        check_places(x)?;
        let values = x.by_pixel();
        let largest = (0..n * c).map(|at| {
            let first = at / c * pixels * c + at % c;
            let rest = (1..pixels).map(|pixel| first + pixel * c);
            rest.fold(first, |best, at| if values[at] > values[best] || values[at].is_nan() { at } else { best }) as u32
        });
        run.saved.indices = largest.collect();
        of_channels(dims, run.saved.indices.iter().map(|&at| values[at as usize]).collect())
    }

    fn backward(&self, run: &mut Backward<'_>) -> Result<()> {
        let x = float(run.inputs, 0)?;
        let mut by_input = vec![0.0f32; x.data().len()];
        run.saved.indices.iter().zip(run.gradient.data()).for_each(|(&at, g)| by_input[at as usize] = *g);
        run.by_input[0] = Some(Array::of_pixels(x, by_input)?);
        Ok(())
    }
}
