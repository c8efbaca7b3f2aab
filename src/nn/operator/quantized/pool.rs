//! Pooling in codes.

use super::check_codes;
use crate::error::{Error, Result};
use crate::kernels::{CODES_GRAIN, CodeMeans, NARROW, Workspace, pool};
use crate::nn::layer::{Order, Precision};
use crate::nn::operator::global_pool::{GlobalPool, whole};
use crate::nn::operator::pool::{Field, Pool};
use crate::nn::operator::{Facts, Operation};
use crate::nn::view::{Inputs, Outputs};
use crate::num::U8Grid;
use crate::tensor::{DType, Shape};

/// The largest u8 code of each window, which is the largest value, on the input's grid. Padding never wins; a window of padding
/// alone gives 0.
///
/// ```
/// use lowprec::nn::{MaxPool2d, operator::QuantizedMaxPool};
/// let pool = QuantizedMaxPool::new(MaxPool2d::new([3, 3]).with_stride([2, 2]).with_padding([1; 4]))?;
/// # let _ = pool;
/// # Ok::<(), lowprec::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizedMaxPool {
    pool: Pool,
}

impl QuantizedMaxPool {
    /// Windows as those of [`MaxPool2d`](crate::nn::MaxPool2d) or of a [`Pool::max`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another pooling, and for one with indices.
    pub fn new(pool: impl Into<Pool>) -> Result<Self> {
        let pool = pool.into();
        match pool.is_max() {
            true => Ok(QuantizedMaxPool { pool }),
            false => Err(Error::Unsupported {
                what: format!("{} without indices as the largest code", pool.name()),
                way_out: "leave it in float, or take a MaxPool of one output".into(),
            }),
        }
    }
}

impl QuantizedMaxPool {
    /// The pooling that it is.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

impl Operation for QuantizedMaxPool {
    fn name(&self) -> &'static str {
        self.pool.name()
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_codes(self.name(), inputs, 1)?;
        self.pool.infer_types(inputs)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        self.pool.infer_shapes(facts)
    }

    fn order(&self) -> Order {
        self.pool.order()
    }

    fn precision(&self) -> Precision {
        Precision::Int8
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.pool.run(inputs, outputs, workspace, threads)
    }
}

/// The mean of each window of an image in u8 codes: `clamp(round(f32(sum - inside * zx) * (sx / (s * count))) + z)`, where `sum` is
/// that of the `inside` codes that lie in the image; where padding counts, `count` is above `inside`. The multiplier is by f32
/// operations. A window of padding alone gives the zero point.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedAvgPool {
    pool: Pool,
    include_pad: bool,
    means: CodeMeans,
}

impl QuantizedAvgPool {
    /// Windows as those of [`AvgPool2d`](crate::nn::AvgPool2d) or of a [`Pool::average`] over two spatial axes, from the grid `x` to
    /// the grid `out`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another pooling, [`Error::Parameter`] when the input's scale is more than 2^64 times that of the
    /// output.
    pub fn new(pool: impl Into<Pool>, x: U8Grid, out: U8Grid) -> Result<Self> {
        let (pool, means) = (pool.into(), CodeMeans::new(x, out)?);
        match pool.averages_images() {
            Some(include_pad) => Ok(QuantizedAvgPool { pool, include_pad, means }),
            None => Err(Error::Unsupported {
                what: format!("this {} as a mean of codes", pool.name()),
                way_out: "leave it in float, or take an AveragePool over two spatial axes".into(),
            }),
        }
    }
}

impl QuantizedAvgPool {
    /// The pooling that it is.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What the codes of the input and of the output stand for.
    pub fn grids(&self) -> [U8Grid; 2] {
        self.means.grids()
    }
}

impl Operation for QuantizedAvgPool {
    fn name(&self) -> &'static str {
        "AveragePool"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        self.pool.check_windows()?;
        check_codes(self.name(), inputs, 1)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        self.pool.infer_shapes(facts)
    }

    fn order(&self) -> Order {
        Order::ChannelsLast
    }

    fn precision(&self) -> Precision {
        Precision::Int8
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let narrow = x.dims[1] * x.dims[2] <= NARROW;
        self.pool.over_images(x.dims, |images| match narrow {
            true => images.pool(self.means.narrow(self.include_pad), x.bytes, y.bytes, (threads, CODES_GRAIN)),
            false => images.pool(self.means.wide(self.include_pad), x.bytes, y.bytes, (threads, CODES_GRAIN)),
        })
    }
}

/// The mean of each channel in u8 codes, `[n, c, ..]` to `[n, c, 1, ..]`: [`QuantizedAvgPool`] of one window over everything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizedGlobalAvgPool {
    means: CodeMeans,
}

impl QuantizedGlobalAvgPool {
    /// From the grid `x` to the grid `out`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the input's scale is more than 2^64 times that of the output.
    pub fn new(x: U8Grid, out: U8Grid) -> Result<Self> {
        Ok(QuantizedGlobalAvgPool { means: CodeMeans::new(x, out)? })
    }
}

impl QuantizedGlobalAvgPool {
    /// What the codes of the input and of the output stand for.
    pub fn grids(&self) -> [U8Grid; 2] {
        self.means.grids()
    }
}

impl Operation for QuantizedGlobalAvgPool {
    fn name(&self) -> &'static str {
        "GlobalAveragePool"
    }

    fn infer_types(&self, inputs: &[Option<DType>]) -> Result<Vec<DType>> {
        check_codes(self.name(), inputs, 1)
    }

    fn infer_shapes(&self, facts: &mut Facts<'_>) -> Result<Vec<Shape>> {
        GlobalPool::average().infer_shapes(facts)
    }

    fn order(&self) -> Order {
        Order::ChannelsLast
    }

    fn precision(&self) -> Precision {
        Precision::Int8
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_>, _: &mut Workspace, threads: usize) -> Result<()> {
        let (x, y) = (inputs.need(0)?, outputs.get(0));
        let Field { inner, first, rank, .. } = Field::new(x.dims, inputs.channels_last());
        let size: usize = x.dims[first..first + rank].iter().product();
        let windows = whole(size, inner);
        match size <= NARROW {
            true => pool(self.means.narrow(false), x.bytes, &windows, y.bytes, (threads, CODES_GRAIN)),
            false => pool(self.means.wide(false), x.bytes, &windows, y.bytes, (threads, CODES_GRAIN)),
        }
        Ok(())
    }
}
